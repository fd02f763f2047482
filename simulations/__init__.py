"""Experiments that use both `fedvlm` and `secure`."""
