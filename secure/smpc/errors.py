"""Errors of private inference.

SecureError
├── ParameterError
│   ├── UnsupportedModuleError   a torch module that has no private counterpart
│   ├── CalibrationError         an activation of the calibration batch is out of range
│   └── AccuracyError            the private result misses the plaintext by more than agreed
├── IntegrityError
│   ├── PlanMismatchError        the two parties (or the dealer) hold different programs
│   └── WireError                bytes from a peer are not a frame that was due
└── MaterialError                correlated randomness is missing, used up or used before
    └── SetupChangedError        the dealer has another set-up than this party
"""

from secure.errors import IntegrityError, ParameterError, SecureError


class UnsupportedModuleError(ParameterError):
    """A torch module has no private counterpart.

    Args:
        path: Where it is in the model (`vision_model.encoder.layers.0.mlp`).
        kind: Its class name.
        reason: What is missing.
    """

    def __init__(self, path: str, kind: str, reason: str) -> None:
        super().__init__(f"{path or 'model'} ({kind}): {reason}")
        self.path = path
        self.kind = kind


class CalibrationError(ParameterError):
    """An activation of the calibration batch is outside what a protocol can represent."""


class CalibrationWarning(UserWarning):
    """A calibration says little about the inputs to come: too few samples, or some that stand out.

    Out of its range a program's result is wrong without a sign of it.
    """


class AccuracyError(ParameterError):
    """The private result misses the plaintext by more than was agreed."""


class PlanMismatchError(IntegrityError):
    """The two parties, or a party and the dealer, hold different programs."""


class WireError(IntegrityError):
    """Bytes from a peer are not a frame that was due."""


class MaterialError(SecureError):
    """Correlated randomness is missing, used up or used before."""


class SetupChangedError(MaterialError):
    """The dealer has another set-up than this party; the owner fetches it again."""
