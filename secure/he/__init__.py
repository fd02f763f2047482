"""Homomorphic encryption: projection, retrieval and aggregation on TenSEAL's CKKS.

The client encrypts (`HEClient`), a server computes on what it cannot read (`EncryptedLinear`).
"""

from secure.he.ciphertext import Encrypted
from secure.he.client import HEClient
from secure.he.keys import EvaluationKeys
from secure.he.linear import EncryptedLinear
from secure.he.params import HEParams
from secure.he.release import ReleasePolicy

__all__ = [
    "Encrypted",
    "EncryptedLinear",
    "EvaluationKeys",
    "HEClient",
    "HEParams",
    "ReleasePolicy",
]
