"""Attach an adapter to a model, and merge it."""

from torch import nn

from fedvlm.adapters.feature import FeatureGate
from fedvlm.adapters.flat import FlatView
from fedvlm.adapters.linear_head import LinearMapHead
from fedvlm.adapters.lora import attach_lora
from fedvlm.adapters.prompt import PromptContext
from fedvlm.adapters.prototypes import PrototypeHead
from fedvlm.adapters.spec import AdapterSpec
from fedvlm.errors import ConfigError
from fedvlm.models.generative import GenerativeVLM
from fedvlm.models.vlm import VLM
from fedvlm.seeds import ExperimentSeed


def freeze(module: nn.Module) -> None:
    """Let nothing of a module train."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def refuse_second(vlm: VLM | GenerativeVLM) -> None:
    """Refuse a model that has an adapter.

    Raises:
        ConfigError: It has one.
    """
    added = (getattr(vlm, name, None) for name in ("prompt", "gate", "head"))
    if any(each is not None for each in added) or hasattr(vlm.backbone, "peft_config"):
        raise ConfigError("the model already has an adapter; merge it or load the model anew")


def attach(vlm: VLM | GenerativeVLM, spec: AdapterSpec, seed: ExperimentSeed) -> FlatView:
    """Freeze a model and attach a fresh adapter, the only part that trains.

    Args:
        vlm: A model without an adapter; it is changed in place.
        spec: Kind and size.
        seed: Decides the initial values, so that every party starts from the same adapter.

    Returns:
        The adapter's trainable parameters as one vector.

    Guarantees:
        Each parameter of a LoRA kind belongs to a module that the model uses: one forward and
        backward pass over random inputs gave it a gradient. Modules without one are left out of
        the default targets, and refused where they are named.

    Raises:
        ConfigError: The model already has an adapter, no module matches the targets, one matches
            that the model never uses, the prompt leaves no room for a caption, or the kind isn't
            for such a model.
    """
    refuse_second(vlm)
    freeze(vlm)
    if spec.is_lora:
        attach_lora(vlm, spec, seed)
    elif isinstance(vlm, GenerativeVLM):
        raise ConfigError(
            f"a model that answers is adapted by lora or ffa-lora; a {spec.kind} adapter is for "
            "dual encoders"
        )
    elif spec.kind == "prompt":
        prompt = PromptContext(vlm.backbone, spec.tokens, seed.torch("adapter"))
        prompt.left_padding = vlm.left_padding
        vlm.prompt = prompt
    elif spec.kind == "prototypes":
        vlm.head = PrototypeHead(vlm, spec.rows, seed.number("rows") % (1 << 63))
    elif spec.kind == "head":
        vlm.head = LinearMapHead(vlm, seed.number("rows") % (1 << 63))
    else:
        vlm.gate = FeatureGate(vlm.embedding_dim, seed.torch("adapter"))
    return FlatView(vlm)


def merge(vlm: VLM | GenerativeVLM) -> VLM | GenerativeVLM:
    """Fold LoRA factors into the base weights; prompt and feature adapters stay as they are.

    Returns:
        The same model, with plain linear layers where the LoRA layers were.

    Guarantees:
        Cosines move by at most 1e-5, the rounding of float32.
    """
    if hasattr(vlm.backbone, "merge_and_unload"):
        vlm.backbone = vlm.backbone.merge_and_unload()  # pyright: ignore
    freeze(vlm)
    return vlm
