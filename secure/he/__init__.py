"""Homomorphic encryption: projection, retrieval and aggregation on TenSEAL's CKKS.

The client encrypts and decrypts (`HEClient`); a server computes on what it cannot read: a layer
(`EncryptedLinear`, `EncryptedProjection`, `EncryptedAdapter`, `EncryptedLoRA`), a search
(`EncryptedGallery`) or a sum (`HEAggregator`).
"""

from secure.he.adapter import EncryptedAdapter, EncryptedLoRA
from secure.he.aggregation import EncryptedSum, HEAggregator, max_summands, sum_params
from secure.he.ciphertext import Encrypted
from secure.he.client import HEClient
from secure.he.errors import (
    DepthError,
    InsecureParametersError,
    KeyMismatchError,
    LayoutError,
    MissingKeyError,
    ParametersMismatchError,
    RangeError,
    ReleaseError,
    WireError,
)
from secure.he.gallery import EncryptedGallery, top_k
from secure.he.guarded import GuardedLinear
from secure.he.keys import EvaluationKeys
from secure.he.linear import EncryptedLinear
from secure.he.params import HEParams
from secure.he.projection import EncryptedProjection
from secure.he.release import ReleasePolicy

__all__ = [
    "DepthError",
    "Encrypted",
    "EncryptedAdapter",
    "EncryptedGallery",
    "EncryptedLinear",
    "EncryptedLoRA",
    "EncryptedProjection",
    "EncryptedSum",
    "EvaluationKeys",
    "GuardedLinear",
    "HEAggregator",
    "HEClient",
    "HEParams",
    "InsecureParametersError",
    "KeyMismatchError",
    "LayoutError",
    "MissingKeyError",
    "ParametersMismatchError",
    "RangeError",
    "ReleaseError",
    "ReleasePolicy",
    "WireError",
    "max_summands",
    "sum_params",
    "top_k",
]
