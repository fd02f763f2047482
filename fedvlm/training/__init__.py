"""Losses, the local training loop, and evaluation."""

from fedvlm.training.evaluation import Evaluator, Retrieval, retrieval
from fedvlm.training.local import train_adapter
from fedvlm.training.losses import contrastive_loss
from fedvlm.training.pairs import EncodedPairs, encode_pairs
from fedvlm.training.settings import LocalSettings

__all__ = [
    "EncodedPairs",
    "Evaluator",
    "LocalSettings",
    "Retrieval",
    "contrastive_loss",
    "encode_pairs",
    "retrieval",
    "train_adapter",
]
