"""Errors that `secure` raises.

A message says what was asked, what was got and what to do; it never carries a secret.

    SecureError
    ├── ParameterError     a value that the caller passed is out of its range (also a ValueError)
    ├── PolicyError        a peer asked for less protection than this side accepts
    ├── IntegrityError     a message, share, ciphertext or key is not what it claims to be
    ├── PeerError          the other side went away, timed out or reported a failure
    └── MissingExtraError  an optional package is not installed (also an ImportError)
"""


class SecureError(Exception):
    """Root of every error that `secure` raises on purpose."""


class ParameterError(SecureError, ValueError):
    """A value passed by the caller is outside its documented range."""


class PolicyError(SecureError):
    """A peer asked for less protection than this side's policy accepts."""


class IntegrityError(SecureError):
    """A message, share, ciphertext or key is not what it claims to be."""


class PeerError(SecureError):
    """The other side went away, timed out or reported a failure."""


class MissingExtraError(SecureError, ImportError):
    """An optional package is needed and not installed.

    Args:
        package: Name of the missing distribution.
        extra: Extra of `fedvlm` that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f'{package} is not installed; install it with: pip install "fedvlm[{extra}]"'
        )
        self.package = package
        self.extra = extra
