"""A folder of two classes, and the settings of a small federation of a head over it."""

from pathlib import Path

from simulations.two_classes import CAPTIONS, make

SHARED = {"dp": "example", "noise": "shared", "epsilon": 3.0, "delta": 1e-4, "protect": "secagg"}
OWN = {"dp": "example", "noise": "own", "epsilon": 3.0, "delta": 1e-4}


def two_classes(folder: Path, adapter: str = "prototypes", count: int = 80) -> dict:
    """Make the folder, and return a federation of three clients over it."""
    if not folder.exists():
        make(folder, count)
    return {
        "data": str(folder),
        "clients": 3,
        "partition": "iid",
        "adapter": adapter,
        "rounds": 1,
        "workers": 1,
        "head_captions": "\n".join(CAPTIONS),
    }
