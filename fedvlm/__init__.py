"""Federated fine-tuning of vision-language models whose protections are real and measured.

    import fedvlm
    result = fedvlm.simulate(fedvlm.config_from({"rounds": 3}))

Names are imported when they are first used, so that `import fedvlm` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fedvlm.errors import (
    BudgetExceeded,
    ConfigError,
    DataError,
    DropoutError,
    FedVLMError,
    IntegrityError,
    ProtocolError,
)

if TYPE_CHECKING:
    from fedvlm.adapters import AdapterSpec, FlatView
    from fedvlm.config import Config, config_from
    from fedvlm.federation import Result, simulate
    from fedvlm.models import VLM, load_model

__version__ = "0.1.0"

_WHERE = {
    "AdapterSpec": "fedvlm.adapters",
    "FlatView": "fedvlm.adapters",
    "Result": "fedvlm.federation",
    "Config": "fedvlm.config",
    "config_from": "fedvlm.config",
    "VLM": "fedvlm.models",
    "load_model": "fedvlm.models",
    "simulate": "fedvlm.federation",
}

__all__ = [
    "VLM",
    "AdapterSpec",
    "BudgetExceeded",
    "Config",
    "ConfigError",
    "DataError",
    "DropoutError",
    "FedVLMError",
    "FlatView",
    "IntegrityError",
    "ProtocolError",
    "Result",
    "config_from",
    "load_model",
    "simulate",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'fedvlm' has no attribute {name!r}")
