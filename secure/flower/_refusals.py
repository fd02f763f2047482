"""The only things that a client says when it refuses: six fixed codes."""

from secure.errors import IntegrityError, ParameterError, PolicyError


class StageError(IntegrityError):
    """A message came out of turn, twice, or for another session."""


class KeysError(ParameterError):
    """The node lacks its key, its roster or its folder, or can't read them."""


REFUSALS = {
    "policy": 1101,
    "stage": 1102,
    "integrity": 1103,
    "input": 1104,
    "client": 1105,
    "keys": 1106,
}
"""Number of each code: `policy` the server asks for less than the floor, or for something plain;
`stage` a message came out of turn; `integrity` a message is not what it claims; `input` the
message holds no such model; `keys` the node has no key, roster or folder; `client` anything
else."""

_TOLD = {number: code for code, number in REFUSALS.items()}


def refusal(error: BaseException) -> str:
    """Return the code of an error; its text, which may hold data, goes no further."""
    if isinstance(error, StageError):
        return "stage"
    if isinstance(error, PolicyError):
        return "policy"
    if isinstance(error, IntegrityError):
        return "integrity"
    if isinstance(error, KeysError):
        return "keys"
    return "input" if isinstance(error, ParameterError) else "client"


def told(code: object) -> str:
    """Return what the server keeps of a client's error: a word of ours, never the client's text."""
    if type(code) is int and code in _TOLD:
        return _TOLD[code]
    return f"error {code}" if type(code) is int else "an error"
