"""Cryptographic building blocks: secure aggregation, two-party inference, encrypted projection.

Usable without `fedvlm` by any Flower app or torch module. Each part is imported on its own
(`secure.aggregation`, `secure.smpc`, `secure.he`), so that none asks for another's packages.
"""

__owner__ = "fedvlm"  # see `secure._whole`

from secure.errors import (
    IntegrityError,
    MissingExtraError,
    ParameterError,
    PeerError,
    PolicyError,
    SecureError,
)
from secure.random import SecureRandom, add_keystreams, keystream

__all__ = [
    "IntegrityError",
    "MissingExtraError",
    "ParameterError",
    "PeerError",
    "PolicyError",
    "SecureError",
    "SecureRandom",
    "add_keystreams",
    "keystream",
]
