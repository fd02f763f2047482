"""Errors of encrypted computation: each one comes before a wrong number could come out.

SecureError
├── ParameterError
│   ├── RangeError                a value or a result can leave the plaintext range
│   └── DepthError                the ciphertext has no level left for this step
├── PolicyError
│   ├── InsecureParametersError   below 128 bits of security
│   └── ReleaseError              the release policy forbids handing this value on
└── IntegrityError
    ├── WireError                 bytes that are not a message of this format
    ├── ParametersMismatchError   made under other parameters
    ├── KeyMismatchError          made under another key
    ├── MissingKeyError           an evaluation key that this step needs is not there
    └── LayoutError               made for another layer, or at another stage of it
"""

from secure.errors import IntegrityError, ParameterError, PolicyError


class RangeError(ParameterError):
    """A value, or the largest result it can lead to, leaves the plaintext range."""


class DepthError(ParameterError):
    """The ciphertext has no level left for this step."""


class InsecureParametersError(PolicyError):
    """The parameters give less than 128 bits of security."""


class ReleaseError(PolicyError):
    """The release policy forbids handing this value to anyone but the key's owner."""


class WireError(IntegrityError):
    """Bytes that are not a message of this format: truncated, altered or of another version."""


class ParametersMismatchError(IntegrityError):
    """A ciphertext or key was made under other encryption parameters."""


class KeyMismatchError(IntegrityError):
    """A ciphertext or evaluation key belongs to another secret key."""


class MissingKeyError(IntegrityError):
    """An evaluation key that this step needs was not sent."""


class LayoutError(IntegrityError):
    """A ciphertext was packed for another layer, or is at another stage of it."""
