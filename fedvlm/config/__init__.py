"""What a run is: frozen sections, read from TOML or from Flower's run config.

Nothing here imports torch: a node that only compares terms needs none.
"""

from fedvlm.config.adapter import DEFAULT_TARGETS, KINDS, AdapterConfig, AdapterSpec
from fedvlm.config.audit import AuditConfig
from fedvlm.config.data import DataConfig
from fedvlm.config.flower import for_nodes, for_server, from_run_config, to_run_config
from fedvlm.config.mitigation import MitigationConfig
from fedvlm.config.model import ModelConfig
from fedvlm.config.privacy import PrivacyConfig
from fedvlm.config.protection import ProtectionConfig
from fedvlm.config.reading import config_from, load_config
from fedvlm.config.server import ServerConfig
from fedvlm.config.training import LocalSettings, TrainingConfig
from fedvlm.config.whole import SECTIONS, SETTINGS, Config

__all__ = [
    "DEFAULT_TARGETS",
    "KINDS",
    "SECTIONS",
    "SETTINGS",
    "AdapterConfig",
    "AdapterSpec",
    "AuditConfig",
    "Config",
    "DataConfig",
    "LocalSettings",
    "MitigationConfig",
    "ModelConfig",
    "PrivacyConfig",
    "ProtectionConfig",
    "ServerConfig",
    "TrainingConfig",
    "config_from",
    "for_nodes",
    "for_server",
    "from_run_config",
    "load_config",
    "to_run_config",
]
