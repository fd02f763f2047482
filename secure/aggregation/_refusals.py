"""The only things that a client says when it refuses: five fixed codes."""

from secure.aggregation._client import StageError
from secure.errors import IntegrityError, ParameterError, PolicyError

REFUSALS = {"policy": 1101, "stage": 1102, "integrity": 1103, "input": 1104, "client": 1105}
"""Number of each code: `policy` the server asks for less than the floor; `stage` a message came
out of turn; `integrity` a message is not what it claims; `input` the app's own reply or
configuration is at fault; `client` anything else."""


def refusal(error: Exception) -> str:
    """Return the code of an error; its text, which may hold data, goes no further."""
    if isinstance(error, StageError):
        return "stage"
    if isinstance(error, PolicyError):
        return "policy"
    if isinstance(error, IntegrityError):
        return "integrity"
    return "input" if isinstance(error, ParameterError) else "client"
