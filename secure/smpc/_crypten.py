"""CrypTen, loaded with its trusted first party and its generators locked.

Its provider makes every triple in party 0, and its Mersenne-Twister generators are no source of
secrets. From here on both raise, for the whole process, wherever they are asked from: a share that
was handed to CrypTen can be added and scaled, not multiplied. `public_data` unlocks them for a
block of code in which nothing is secret: the baseline's.
"""

import importlib
import importlib.util
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from secure.errors import MissingExtraError, PolicyError
from secure.smpc._party import Share

_MOVED = "torch.onnx._internal.registration"
_MOVED_TO = "torch.onnx._internal.torchscript_exporter.registration"
_unlocked = {"by": 0}


def _require_unlocked(what: str) -> None:
    if not _unlocked["by"]:
        raise PolicyError(
            f"CrypTen's {what} protects nothing and is refused outside the baseline; "
            "secure.smpc takes its randomness from a dealer"
        )


class _LockedGenerators(dict):
    """CrypTen's generators by device, which can't be taken out while locked."""

    def __getitem__(self, device: Any) -> Any:
        _require_unlocked("generators (Mersenne Twister)")
        return super().__getitem__(device)


def load_crypten() -> Any:
    """Import CrypTen, on a torch whose ONNX internals have moved too, and lock it.

    Raises:
        MissingExtraError: CrypTen isn't installed.
    """
    if importlib.util.find_spec(_MOVED) is None and _MOVED not in sys.modules:
        sys.modules[_MOVED] = importlib.import_module(_MOVED_TO)
    try:
        crypten = importlib.import_module("crypten")
    except ModuleNotFoundError as error:
        if error.name != "crypten":
            raise
        raise MissingExtraError("crypten", "smpc") from error
    _lock(crypten)
    return crypten


def _lock(crypten: Any) -> None:
    if isinstance(crypten.generators["local"], _LockedGenerators):
        return
    for name, known in crypten.generators.items():
        crypten.generators[name] = _LockedGenerators(known)
    provider = crypten.mpc.get_default_provider

    def locked() -> Any:
        _require_unlocked("trusted first party")
        return provider()

    crypten.mpc.get_default_provider = locked


@contextmanager
def public_data() -> Iterator[None]:
    """Unlock CrypTen's provider and generators while nothing is secret."""
    _unlocked["by"] += 1
    try:
        yield
    finally:
        _unlocked["by"] -= 1


def to_crypten(share: Share) -> Any:
    """Hand a share to CrypTen as it is: an `ArithmeticSharedTensor` of the same precision."""
    load_crypten()
    primitives = importlib.import_module("crypten.mpc.primitives")
    return primitives.ArithmeticSharedTensor.from_shares(share.value, precision=share.bits)


def from_crypten(tensor: Any) -> Share:
    """Take a share back from an `ArithmeticSharedTensor`."""
    return Share(tensor.share, int(math.log2(tensor.encoder.scale)))
