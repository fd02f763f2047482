"""An adapter in a folder: LoRA in peft's format, the others in one of two files like it.

`adapter_config.json` says what it is, `adapter_model.safetensors` holds its tensors, and
`base_model.json` (which peft doesn't read) says which base model it was trained on. For the prompt
adapter the configuration is `{"fedvlm_kind": "prompt", "tokens": n}` and the one tensor
`prompt.context` of shape (n, D_text); for the feature gate `{"fedvlm_kind": "feature"}` and
`gate.inner.weight`, `gate.inner.bias`, `gate.outer.weight`, `gate.outer.bias`, of shapes (D, D) and
(D,).
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedvlm.adapters.attach import attach, freeze, refuse_second
from fedvlm.adapters.linear_head import loaded_map
from fedvlm.adapters.lora import load_lora
from fedvlm.adapters.prototypes import loaded_head
from fedvlm.adapters.spec import AdapterSpec
from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.files import whole_file, write_text
from fedvlm.models.generative import GenerativeVLM
from fedvlm.models.hashing import weights_hash
from fedvlm.models.vlm import VLM
from fedvlm.models.weights import first_line
from fedvlm.seeds import ExperimentSeed

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_OLDER = "adapter_model.bin"
_BASE = "base_model.json"


def save_adapter(vlm: VLM | GenerativeVLM, spec: AdapterSpec, folder: Path) -> None:
    """Save an adapter to a folder; LoRA in peft's own format, so that others can use it.

    Args:
        vlm: A model with an adapter.
        spec: The adapter's kind and size.
        folder: Gets `adapter_config.json`, `adapter_model.safetensors` and `base_model.json`.

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
        told = {"fedvlm_kind": spec.kind, "tokens": spec.tokens}
        if isinstance(vlm, VLM) and vlm.head is not None:
            state = {f"head.{name}": tensor for name, tensor in vlm.head.state_dict().items()}
            told = {"fedvlm_kind": spec.kind, **vlm.head.numbers()}  # pyright: ignore
        text = json.dumps(told)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    with whole_file(folder / _WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_text(folder / _BASE, json.dumps({"weights_sha256": weights_hash(vlm)}) + "\n")
    write_text(folder / _CONFIG, text + "\n")


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read configuration and tensors, whatever is wrong with them in one line."""
    path = folder / _CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{_CONFIG} is not a JSON object")
        path = folder / _WEIGHTS
        if not path.exists() and (folder / _OLDER).exists():
            path = folder / _OLDER
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or not all(torch.is_tensor(t) for t in state.values()):
                raise ValueError(f"{_OLDER} is not a dictionary of tensors")
        else:
            state = load_file(path)
    except Exception as error:  # json, safetensors, zipfile and pickle each raise their own
        raise ConfigError(
            f"{folder} holds no readable adapter: {path.name}: {first_line(error)}"
        ) from error
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise IntegrityError(f"{folder}: {name} holds values that are not finite numbers")
    return content, state


def _check_base(vlm: VLM | GenerativeVLM, folder: Path) -> None:
    path = folder / _BASE
    if not path.exists():  # peft's own folders have none
        return
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is broken: {first_line(error)}") from error
    found = weights_hash(vlm)
    if expected != found:
        raise IntegrityError(
            f"{folder}: the adapter was made for another model: its base model's weights are "
            f"{str(expected)[:12]}…, these are {found[:12]}…"
        )


def load_adapter(vlm: VLM | GenerativeVLM, folder: Path) -> AdapterSpec:
    """Attach the adapter saved in a folder.

    Args:
        vlm: A model without an adapter; it is changed in place.
        folder: As `save_adapter` or peft wrote it.

    Returns:
        The adapter's kind and size.

    Guarantees:
        The model then says what it said when the adapter was saved, or what it says in peft:
        rank-stabilised and fractional scales, patterns by module, chosen layers and DoRA included.

    Raises:
        ConfigError: The folder holds no adapter, or one of a kind that isn't supported; the
            message names what isn't.
        IntegrityError: The saved tensors don't fit the model, or were trained on another one.
    """
    content, state = _read(folder)
    refuse_second(vlm)
    freeze(vlm)
    _check_base(vlm, folder)
    kind = content.get("peft_type")
    try:
        if kind == "LORA":
            return load_lora(vlm, content, state)
        if kind is not None:
            raise ConfigError(f"peft_type {kind!r} is not supported; only LORA is")
        if isinstance(vlm, GenerativeVLM):
            raise ConfigError("it is no LoRA, and a model that answers takes nothing else")
        return _load_own(vlm, content, state)
    except ConfigError as error:
        raise ConfigError(f"{folder / _CONFIG}: {error}") from error
    except IntegrityError as error:
        raise IntegrityError(f"{folder}: {error}") from error


def _load_own(vlm: VLM, content: dict[str, Any], state: dict[str, Tensor]) -> AdapterSpec:
    if content.get("fedvlm_kind") == "prototypes":
        head = loaded_head(vlm, content, state)
        vlm.head = head
        return AdapterSpec("prototypes", rows=head.rows)
    if content.get("fedvlm_kind") == "head":
        vlm.head = loaded_map(vlm, content, state)
        return AdapterSpec("head")
    kind, tokens = content.get("fedvlm_kind"), content.get("tokens", 4)
    if kind not in ("prompt", "feature"):
        raise ConfigError(
            "it says neither peft_type nor a known fedvlm_kind (prompt, feature, prototypes, "
            f"head), got {kind!r}"
        )
    if type(tokens) is not int:
        raise ConfigError(f"tokens must be a whole number, got {tokens!r}")
    spec = AdapterSpec(kind, tokens=tokens)
    attach(vlm, spec, ExperimentSeed(0))  # every value is overwritten below
    own = {name: p for name, p in vlm.named_parameters() if p.requires_grad}
    missing, unknown = own.keys() - state, state.keys() - own.keys()
    if missing or unknown:
        raise IntegrityError(
            "the adapter was made for another model: "
            f"{len(missing)} tensors missing, {len(unknown)} unknown"
        )
    for name, parameter in own.items():
        if parameter.shape != state[name].shape:
            raise IntegrityError(f"{name} has another shape")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
    return spec
