"""Federated fine-tuning of vision-language models whose protections are real and measured."""
