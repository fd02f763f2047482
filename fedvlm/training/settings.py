"""How a client trains: a section of the configuration, under the name that it had."""

from fedvlm.config.training import LocalSettings

__all__ = ["LocalSettings"]
