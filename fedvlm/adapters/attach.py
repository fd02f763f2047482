"""Attach an adapter to a model, merge it, save it, load it."""

import json
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from fedvlm.adapters.feature import FeatureGate
from fedvlm.adapters.flat import FlatView
from fedvlm.adapters.prompt import PromptContext
from fedvlm.adapters.spec import AdapterSpec
from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.files import whole_file, write_text
from fedvlm.models.vlm import VLM
from fedvlm.seeds import ExperimentSeed

# peft reads a name that transformers has deprecated; there is nothing for a user to do.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


def _freeze(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def _attach_lora(vlm: VLM, spec: AdapterSpec, seed: ExperimentSeed) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules=spec.targets, lora_dropout=0.0
    )
    # peft draws A from torch's global generator: lend it one of our own for that moment.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed.number("adapter"))
        try:
            vlm.backbone = get_peft_model(vlm.backbone, config)  # pyright: ignore
        except ValueError as error:
            raise ConfigError(
                f"no module of the model matches the LoRA targets {spec.targets!r}"
            ) from error
    if spec.kind == "ffa-lora":
        for name, parameter in vlm.backbone.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)


def attach(vlm: VLM, spec: AdapterSpec, seed: ExperimentSeed) -> FlatView:
    """Freeze a model and attach a fresh adapter, the only part that trains.

    Args:
        vlm: A model without an adapter; it is changed in place.
        spec: Kind and size.
        seed: Decides the initial values, so that every party starts from the same adapter.

    Returns:
        The adapter's trainable parameters as one vector.

    Raises:
        ConfigError: The model already has an adapter, or no module matches the targets.
    """
    if any(parameter.requires_grad for parameter in vlm.parameters()):
        _freeze(vlm)
    if vlm.prompt is not None or vlm.gate is not None or hasattr(vlm.backbone, "peft_config"):
        raise ConfigError("the model already has an adapter; merge it or load the model anew")
    if spec.is_lora:
        _attach_lora(vlm, spec, seed)
    elif spec.kind == "prompt":
        vlm.prompt = PromptContext(vlm.backbone, spec.tokens, seed.torch("adapter"))
    else:
        vlm.gate = FeatureGate(vlm.embedding_dim, seed.torch("adapter"))
    return FlatView(vlm)


def merge(vlm: VLM) -> VLM:
    """Fold LoRA factors into the base weights; prompt and feature adapters stay as they are.

    Returns:
        The same model, with plain linear layers where the LoRA layers were.
    """
    if hasattr(vlm.backbone, "merge_and_unload"):
        vlm.backbone = vlm.backbone.merge_and_unload()  # pyright: ignore
    _freeze(vlm)
    return vlm


def save_adapter(vlm: VLM, spec: AdapterSpec, folder: Path) -> None:
    """Save an adapter to a folder; LoRA in peft's own format, so that others can use it.

    Args:
        vlm: A model with an adapter.
        spec: The adapter's kind and size.
        folder: Gets `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        DataError: The folder can't be written.
    """
    if spec.is_lora:
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(vlm.backbone)  # pyright: ignore
        config = vlm.backbone.peft_config["default"].to_dict()  # pyright: ignore
        config["inference_mode"] = True
        text = json.dumps({k: sorted(v) if isinstance(v, set) else v for k, v in config.items()})
    else:
        state = {name: p for name, p in vlm.named_parameters() if p.requires_grad}
        text = json.dumps({"fedvlm_kind": spec.kind, "tokens": spec.tokens})
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    with whole_file(folder / _WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_text(folder / _CONFIG, text + "\n")


def load_adapter(vlm: VLM, folder: Path) -> AdapterSpec:
    """Attach the adapter saved in a folder.

    Args:
        vlm: A model without an adapter; it is changed in place.
        folder: As `save_adapter` or peft wrote it.

    Returns:
        The adapter's kind and size.

    Raises:
        ConfigError: The folder holds no adapter.
        IntegrityError: The saved tensors don't fit the model: another schema.
    """
    try:
        config = json.loads((folder / _CONFIG).read_text())
        state = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{folder} holds no readable adapter: {error}") from error
    seed = ExperimentSeed(0)  # every value is overwritten below
    if config.get("peft_type") == "LORA":
        targets = config["target_modules"]
        if isinstance(targets, list):
            targets = r".*\.?(" + "|".join(targets) + ")"
        spec = AdapterSpec("lora", config["r"], int(config["lora_alpha"]), targets)
        attach(vlm, spec, seed)
        from peft import set_peft_model_state_dict

        try:
            found = set_peft_model_state_dict(vlm.backbone, state)  # pyright: ignore
        except RuntimeError as error:
            raise IntegrityError(f"{folder}: tensors of another shape: {error}") from error
        missing = [key for key in found.missing_keys if "lora_" in key]
        unexpected = list(found.unexpected_keys)
    else:
        kind = config.get("fedvlm_kind")
        spec = AdapterSpec(str(kind), tokens=int(config.get("tokens", 4)))
        attach(vlm, spec, seed)
        own = {name: p for name, p in vlm.named_parameters() if p.requires_grad}
        missing, unexpected = sorted(own.keys() - state), sorted(state.keys() - own)
        if not missing and not unexpected:
            with torch.no_grad():
                for name, parameter in own.items():
                    if parameter.shape != state[name].shape:
                        raise IntegrityError(f"{folder}: {name} has another shape")
                    parameter.copy_(state[name])
    if missing or unexpected:
        raise IntegrityError(
            f"{folder}: the adapter was made for another model: "
            f"{len(missing)} tensors missing, {len(unexpected)} unknown"
        )
    return spec
