"""A torchvision that doesn't fit the installed torch, kept from breaking transformers and peft.

CrypTen's metadata asks for torchvision. PyPI's is built for CUDA; beside a CPU build of torch it
can't be imported, and transformers, which only looks whether it is there, fails with it. Nothing
in this library needs it.
"""

import logging
import sys
from importlib.util import find_spec

_NAME = "torchvision"


def is_broken() -> bool:
    """Say whether torchvision is installed and can't be imported; imports it where it can."""
    if _NAME in sys.modules:
        return False  # in use already, or hidden already
    if find_spec(_NAME) is None:
        return False
    try:
        __import__(_NAME)
    except Exception:  # RuntimeError, OSError, ImportError: whatever its binary part raises
        for name in [name for name in sys.modules if name.partition(".")[0] == _NAME]:
            del sys.modules[name]
        return True
    return False


def hide_if_broken() -> None:
    """Make a torchvision that can't be imported look absent, before transformers looks for it."""
    if is_broken():
        # `find_spec` and `import` take a None here for "not there".
        sys.modules[_NAME] = None  # pyright: ignore[reportArgumentType]
        logging.getLogger("fedvlm").info(
            "torchvision doesn't fit this torch and is left out of use; nothing here needs it"
        )
