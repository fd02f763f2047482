"""Whether this package is whole: another project on PyPI installs into a folder of its name."""

import sys

OWNER = "fedvlm"
CURE = (
    "pip uninstall -y secure; pip install --force-reinstall --no-deps fedvlm"
    " (PyPI's project `secure` writes into the same folder and can't be installed beside fedvlm)"
)


def fault() -> str | None:
    """Return what is wrong with the package, with the cure; None where it is whole."""
    package = sys.modules.get(__name__.partition(".")[0])
    if getattr(package, "__owner__", None) == OWNER:
        return None
    gone = getattr(package, "__file__", None) is None
    what = "has lost its __init__.py" if gone else "holds another project's __init__.py"
    return f"the package `secure` {what}: {CURE}"


def require() -> None:
    """Refuse to hand out secrets from a package that another project has written into.

    Raises:
        ImportError: Its `__init__.py` is another's, or gone.
    """
    found = fault()
    if found:
        raise ImportError(found)
