"""What a run is: frozen dataclasses, read from TOML or from Flower's run config.

Nothing here imports torch: a node that only compares terms needs none.
"""

from fedvlm.config.adapter import DEFAULT_TARGETS, KINDS, AdapterSpec
from fedvlm.config.simulation import SimulationConfig, config_from, load_config
from fedvlm.config.training import LocalSettings

__all__ = [
    "DEFAULT_TARGETS",
    "KINDS",
    "AdapterSpec",
    "LocalSettings",
    "SimulationConfig",
    "config_from",
    "load_config",
]
