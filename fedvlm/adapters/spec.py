"""The adapter's kind and size: a section of the configuration, under the name that it had."""

from fedvlm.config.adapter import DEFAULT_TARGETS, KINDS, AdapterSpec

__all__ = ["DEFAULT_TARGETS", "KINDS", "AdapterSpec"]
