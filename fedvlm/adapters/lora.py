"""LoRA by peft: put in place, and read back from what peft, or this library, has saved."""

import re
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedvlm.adapters.spec import AdapterSpec
from fedvlm.adapters.targets import matching, resolved, unused
from fedvlm.config.targets import target_pattern
from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.models.vlm import VLM
from fedvlm.models.weights import first_line
from fedvlm.seeds import ExperimentSeed

# peft reads a name that transformers has deprecated; there is nothing for a user to do.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)

# torch's global generator is one for all threads: who borrows it does so alone.
_generator = threading.Lock()
_PREFIX = "base_model.model."
# What a saved configuration may set, and peft then does.
_TAKEN = {
    "r", "lora_alpha", "target_modules", "exclude_modules", "use_rslora", "use_dora", "lora_bias",
    "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern",
}  # fmt: skip
# What says nothing about the values of a trained adapter.
_IDLE = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "lora_dropout", "fan_in_fan_out", "init_lora_weights", "megatron_core",
    "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
# Initial values that leave the base model's weights alone.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


def _inject(vlm: VLM, config: Any, seed: int) -> None:
    from peft import get_peft_model

    # peft draws A from torch's global generator: lend it one of our own for that moment.
    with _generator, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vlm.backbone = get_peft_model(vlm.backbone, config)  # pyright: ignore


def attach_lora(vlm: VLM, spec: AdapterSpec, seed: ExperimentSeed) -> None:
    """Put fresh LoRA layers into a frozen model.

    Raises:
        ConfigError: The targets match nothing, or a module that the model doesn't use.
    """
    from peft import LoraConfig

    names = matching(vlm.backbone, spec.targets)
    idle = unused(vlm, names)
    if idle and (len(idle) == len(names) or not spec.picks_for_itself):
        raise ConfigError(
            f"LoRA's targets match {', '.join(idle[:3])}{' …' if len(idle) > 3 else ''}, which the "
            "model never uses: nothing is learned there, noise would be added to it, and merging "
            "would change the model; make targets narrower"
        )
    everything = target_pattern(resolved(vlm.backbone, spec.targets))
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # pyright: ignore[reportArgumentType]  peft takes floats too
        target_modules=names if everything == ".*" else everything,
        exclude_modules=idle or None,
        lora_dropout=0.0,
    )
    _inject(vlm, config, seed.number("adapter"))
    if spec.kind == "ffa-lora":
        for name, parameter in vlm.backbone.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)


def _saved_config(content: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what of a saved configuration peft shall heed.

    Raises:
        ConfigError: It sets something that isn't supported; the message names it.
    """
    from peft import LoraConfig

    default = LoraConfig().to_dict()
    for key, value in content.items():
        if key in _TAKEN or key in _IDLE or not value:
            continue
        if key not in default or value != default[key]:
            raise ConfigError(f"it sets {key} = {value!r}, which is not supported")
    start = content.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ConfigError(
            f"it sets init_lora_weights = {start!r}, which changes the base model too: not "
            "supported; let peft convert it to a plain LoRA when it is saved"
        )
    ranks = [content.get("r", 8), *(content.get("rank_pattern") or {}).values()]
    widest = max((max(t.shape) for t in state.values() if t.ndim), default=0)
    if not all(type(rank) is int and 0 < rank <= widest for rank in ranks):
        raise ConfigError(f"it sets ranks {ranks}, and the widest of its tensors has {widest}")
    return {key: value for key, value in content.items() if key in _TAKEN}


def _targets_of(modules: Any) -> str:
    """Return peft's list of module names, or its regular expression, as a specification has it."""
    if isinstance(modules, str):
        return modules
    return rf"(.*\.)?({'|'.join(re.escape(name) for name in sorted(modules))})"


def load_lora(vlm: VLM, content: Mapping[str, Any], state: Mapping[str, Tensor]) -> AdapterSpec:
    """Put a saved LoRA into a model: the model says what it would say in peft.

    Args:
        vlm: A frozen model without an adapter.
        content: `adapter_config.json`.
        state: The adapter's tensors by peft's names; any floating-point dtype.

    Returns:
        Kind, rank, scale and targets; patterns by module are in the model only.

    Raises:
        ConfigError: The configuration sets something that isn't supported.
        IntegrityError: The tensors don't fit the model.
    """
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.tuners.tuners_utils import check_target_module_exists

    try:
        chosen = LoraConfig(**_saved_config(content, state))
        matched = {
            name: module
            for name, module in vlm.backbone.named_modules()
            if name and check_target_module_exists(chosen, name)
        }
        linear = [name for name, m in matched.items() if isinstance(m, torch.nn.Linear)]
        idle = set(unused(vlm, linear)) if linear else set()
        # What the model never calls has no effect in peft, until it is merged: leave it out.
        held = {
            name: tensor.float()
            for name, tensor in state.items()
            if not any(name.startswith(f"{_PREFIX}{module}.lora_") for module in idle)
        }
        if idle:
            chosen.exclude_modules = sorted(idle)
            chosen.target_modules = list(matched)
            chosen.layers_to_transform = chosen.layers_pattern = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _inject(vlm, chosen, 0)  # every value is overwritten below
    except ConfigError:
        raise
    except Exception as error:  # peft checks little before it uses a value
        raise ConfigError(f"peft can't use it: {first_line(error)}") from error
    own = get_peft_model_state_dict(vlm.backbone)  # pyright: ignore
    missing, unknown = own.keys() - held, held.keys() - own.keys()
    if missing or unknown:
        raise IntegrityError(
            "the adapter was made for another model: "
            f"{len(missing)} tensors missing, {len(unknown)} unknown "
            f"({', '.join(sorted(missing | unknown)[:2])})"
        )
    for name, tensor in own.items():
        if tensor.shape != held[name].shape:
            raise IntegrityError(
                f"{name} has another shape: {tuple(held[name].shape)}, expected "
                f"{tuple(tensor.shape)}"
            )
    set_peft_model_state_dict(vlm.backbone, held)  # pyright: ignore
    return AdapterSpec(
        "lora", chosen.r, chosen.lora_alpha, _targets_of(content.get("target_modules"))
    )
