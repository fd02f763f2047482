"""What clients train and exchange: LoRA, FFA-LoRA, prompt tokens, feature gates."""

from fedvlm._torchvision import hide_if_broken
from fedvlm.adapters.attach import attach, merge
from fedvlm.adapters.flat import FlatView
from fedvlm.adapters.saving import load_adapter, save_adapter
from fedvlm.adapters.spec import KINDS, AdapterSpec

__all__ = ["KINDS", "AdapterSpec", "FlatView", "attach", "load_adapter", "merge", "save_adapter"]

hide_if_broken()
