"""Errors that `fedvlm` raises.

FedVLMError
├── ConfigError        a setting, path or input is wrong (exit code 2)
├── DataError          data is missing, broken or can't be fetched (exit code 2)
├── ProtocolError      a protocol refused to go on (exit code 3)
│   ├── DropoutError   too few clients answered
│   └── IntegrityError what arrived is not what was promised
└── BudgetExceeded     the next step would overspend the privacy budget (exit code 3)
"""


class FedVLMError(Exception):
    """Root of every error that `fedvlm` raises on purpose."""

    exit_code = 1


class ConfigError(FedVLMError, ValueError):
    """A setting, path or input is wrong; the message names it, its range and the fix."""

    exit_code = 2


class DataError(FedVLMError):
    """Data is missing, broken or can't be fetched."""

    exit_code = 2


class ProtocolError(FedVLMError):
    """A protocol refused to go on."""

    exit_code = 3


class DropoutError(ProtocolError):
    """Too few clients answered to go on."""


class IntegrityError(ProtocolError):
    """What arrived is not what was promised: another schema, a wrong shape, a NaN."""


class BudgetExceeded(FedVLMError):  # noqa: N818  the field's own name for it
    """The next step would spend more privacy than the budget allows; it was not taken."""

    exit_code = 3


def one_line(error: Exception | str) -> str:
    """Return why something failed, in one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
