"""Which modules LoRA goes to: what a user writes, and which of them the model really uses.

A target that no forward pass calls, or whose gradient is always zero, learns nothing: under DP it
still takes noise, and merging then adds that noise to weights that are in use (SigLIP's pooling
head reads `out_proj.weight` without calling `out_proj`). A probe finds them, for any model.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from fedvlm.config.adapter import DEFAULT_TARGETS
from fedvlm.config.targets import ALL_LINEAR, target_pattern
from fedvlm.errors import ConfigError
from fedvlm.models.vlm import VLM


def resolved(backbone: Any, targets: str) -> str:
    """Return targets as they are meant for a model: the default names CLIP's layers alone."""
    kind = getattr(backbone.config, "model_type", None)
    if targets.strip() == DEFAULT_TARGETS and kind not in ("clip", "siglip", "siglip2"):
        return ALL_LINEAR
    return targets


def matching(backbone: nn.Module, targets: str) -> list[str]:
    """Return the full names of the modules that targets stand for, in the model's order.

    Raises:
        ConfigError: There is none, or one that LoRA can't be put around.
    """
    targets = resolved(backbone, targets)
    pattern = re.compile(target_pattern(targets))
    linear_only = targets.strip() == ALL_LINEAR
    found = []
    for name, module in backbone.named_modules():
        if not name or not pattern.fullmatch(name):
            continue
        if isinstance(module, nn.Linear):
            found.append(name)
        elif not linear_only:
            raise ConfigError(
                f"LoRA's targets {targets!r} match {name}, which is a {type(module).__name__} and "
                "not a linear layer; make them narrower"
            )
    if not found:
        raise ConfigError(f"no module of the model matches the LoRA targets {targets!r}")
    return found


def probe_inputs(vlm: VLM, rows: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return random inputs that fit a model: for `encode_image` and for `encode_text`."""
    if vlm.probe is not None:
        images, texts = vlm.probe(rows)
        return dict(images), dict(texts)
    config: Any = vlm.backbone.config
    text, vision = config.text_config, config.vision_config
    rng = torch.Generator().manual_seed(0)
    length = min(12, int(text.max_position_embeddings))
    ids = torch.randint(int(text.vocab_size), (rows, length), generator=rng)
    if config.model_type == "clip":
        end = int(text.eos_token_id)
        ids[ids == end] = (end + 1) % int(text.vocab_size)
        ids[:, -1] = end
    channels = int(vision.num_channels)
    if config.model_type == "siglip2":
        side = min(4, int(vision.num_patches**0.5))
        width = channels * int(vision.patch_size) ** 2
        images = {
            "pixel_values": torch.randn(rows, side * side, width, generator=rng),
            "pixel_attention_mask": torch.ones(rows, side * side, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[side, side]] * rows),
        }
    else:
        size = int(vision.image_size)
        images = {"pixel_values": torch.randn(rows, channels, size, size, generator=rng)}
    return images, {"input_ids": ids}


def unused(vlm: VLM, names: list[str]) -> list[str]:
    """Find the linear layers that nothing can be learned in.

    Args:
        vlm: A model without an adapter, frozen.
        names: Full names of linear layers of its backbone.

    Returns:
        Those of the names whose weight, or LoRA around it, gets a gradient of exactly zero: the
        forward pass doesn't call the layer, or nothing depends on what it returns. One forward and
        backward pass over two random rows tells.
    """
    modules = dict(vlm.backbone.named_modules())
    zero = torch.zeros((), requires_grad=True)
    calls: list[tuple[str, Tensor, Tensor]] = []

    def watch(name: str):
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            marked = output + zero  # of the graph, even below the lowest layer that trains
            calls.append((name, inputs[0].detach(), marked))
            return marked

        return keep

    handles = [modules[name].register_forward_hook(watch(name)) for name in names]
    images, texts = probe_inputs(vlm)
    rng = torch.Generator().manual_seed(1)
    modes = [(module, module.training) for module in vlm.modules()]
    vlm.eval()
    try:
        with torch.enable_grad():
            parts = (vlm.encode_image(images), vlm.encode_text(texts))
            score = sum((x * torch.randn(x.shape, generator=rng)).sum() for x in parts)
            outputs = [output for _, _, output in calls]
            if not outputs:
                return list(names)
            gradients = torch.autograd.grad(score, outputs, allow_unused=True)  # pyright: ignore
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()
    used = set()
    for (name, x, _), g in zip(calls, gradients, strict=True):
        if g is not None and name not in used:
            change = g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1])
            if bool(change.any()):
                used.add(name)
    return [name for name in names if name not in used]
