"""The clipped sum of per-example gradients, layer by layer, without any per-example gradient.

Where row i of each layer's input belongs to example i, a linear layer's gradient for example i
is Σ_t g_t x_tᵀ over the layer's inputs x and output gradients g. Its norm comes from these, and so
does the clipped sum, by one forward and one backward pass (Bu et al. 2023, "book-keeping").

LoRA gets more: W + sBA is put in W's place for the two passes. What reaches the layer above and the
layer below is the same, and both factors' gradients follow from the layer's x and g alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedvlm.errors import ConfigError
from fedvlm.models.vlm import VLM

# A trained parameter with left (B, T, o) and right (B, T, i): its gradient for each example is
# leftᵀ right.
Factors = tuple[nn.Parameter, Tensor, Tensor]


@dataclass(frozen=True)
class Tap:
    """A linear layer that trained parameters act through.

    Attributes:
        layer: The layer that is called.
        trained: Its trained parameters, or those of the LoRA around it.
        factors: Turns x (B, T, in) and g (B, T, out) into the parameters' gradients.
        merge: Returns what stands in the weight's place for the two passes; None for itself.
    """

    layer: nn.Linear
    trained: tuple[nn.Parameter, ...]
    factors: Callable[[Tensor, Tensor], list[Factors]]
    merge: Callable[[], Tensor] | None = None
    lora: Any = None


def _linear_tap(layer: nn.Linear) -> Tap:
    def factors(x: Tensor, g: Tensor) -> list[Factors]:
        found: list[Factors] = []
        if layer.weight.requires_grad:
            found.append((layer.weight, g, x))
        if layer.bias is not None and layer.bias.requires_grad:
            found.append((layer.bias, g, torch.ones_like(g[:, :, :1])))
        return found

    return Tap(layer, tuple(p for p in layer.parameters() if p.requires_grad), factors)


def _lora_tap(lora: Any) -> Tap | None:
    """Return the tap of a peft LoRA layer; None for a kind that doesn't merge exactly."""
    names = list(lora.active_adapters)
    if len(names) != 1 or type(lora.base_layer) is not nn.Linear or lora.lora_variant:
        return None
    (name,) = names
    a, b = lora.lora_A[name], lora.lora_B[name]
    scale = float(lora.scaling[name])
    frozen = not any(p.requires_grad for p in lora.base_layer.parameters())
    exact = isinstance(lora.lora_dropout[name], nn.Identity) and b.bias is None
    if not (frozen and exact) or lora.merged:
        return None

    def factors(x: Tensor, g: Tensor) -> list[Factors]:
        found: list[Factors] = []
        if a.weight.requires_grad:
            found.append((a.weight, scale * (g @ b.weight), x))
        if b.weight.requires_grad:
            found.append((b.weight, g, scale * (x @ a.weight.T)))
        return found

    def merge() -> Tensor:
        return lora.base_layer.weight + scale * (b.weight @ a.weight)

    trained = tuple(p for p in (a.weight, b.weight) if p.requires_grad)
    return Tap(lora.base_layer, trained, factors, merge, lora)


def taps_of(vlm: VLM) -> list[Tap] | None:
    """Return the layers that all trained parameters act through, or None where some don't."""
    taps: list[Tap] = []
    if hasattr(vlm.backbone, "peft_config"):
        from peft.tuners.lora import Linear as LoraLinear

        found = [_lora_tap(module) for module in vlm.modules() if isinstance(module, LoraLinear)]
        taps = [tap for tap in found if tap is not None]
    held = {id(p) for tap in taps for p in tap.trained}
    for module in vlm.modules():
        free = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if type(module) is nn.Linear and any(id(p) not in held for p in free):
            taps.append(_linear_tap(module))
            held |= {id(p) for p in free}
    return taps if all(id(p) in held for p in vlm.parameters() if p.requires_grad) else None


@contextmanager
def merged(taps: list[Tap]) -> Iterator[None]:
    """Put W + sBA in W's place; the weights come back bit by bit, not by subtraction."""
    before: list[tuple[Tap, Tensor]] = []
    try:
        for tap in taps:
            if tap.merge is None:
                continue
            with torch.no_grad():
                weight = tap.merge()
            before.append((tap, tap.layer.weight.data))
            tap.layer.weight.data = weight
            tap.lora.merged_adapters.extend(tap.lora.active_adapters)
        yield
    finally:
        for tap, weight in before:
            tap.layer.weight.data = weight
            tap.lora.merged_adapters.clear()


def _squared_norms(left: Tensor, right: Tensor) -> Tensor:
    """Return ‖leftᵀ right‖² for each example, in whichever of two ways is less work."""
    places, o, i = left.shape[1], left.shape[2], right.shape[2]
    if 2 * places * (o + i) < o * i:
        by_left = left @ left.transpose(1, 2)
        by_right = right @ right.transpose(1, 2)
        # Exact arithmetic can't go below zero; rounding can.
        return (by_left * by_right).sum(dim=(1, 2)).clamp(min=0)
    small, large = (left, right) if o < i else (right, left)
    return torch.linalg.vector_norm(small.transpose(1, 2) @ large, dim=(1, 2)).square()


def _weighted_sum(left: Tensor, right: Tensor, factor: Tensor) -> Tensor:
    """Return Σ_b factor_b · left_bᵀ right_b; the smaller side is the one that is scaled."""
    if left.shape[2] < right.shape[2]:
        left = left * factor[:, None, None]
    else:
        right = right * factor[:, None, None]
    return left.flatten(0, 1).T @ right.flatten(0, 1)


def _passes(
    losses: Callable[[], Tensor], taps: list[Tap]
) -> tuple[int, list[tuple[Tap, Tensor, Tensor]]]:
    """Run forward and backward; returns the rows, and each call's tap with its x and g."""
    calls: list[tuple[Tap, Tensor]] = []
    outputs: list[Tensor] = []

    def watch(tap: Tap) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:  # below the lowest trained layer nothing does
                output.requires_grad_()
            calls.append((tap, inputs[0].detach()))
            outputs.append(output)

        return keep

    handles = [tap.layer.register_forward_hook(watch(tap)) for tap in taps]  # pyright: ignore
    try:
        values = losses()
    finally:
        for handle in handles:
            handle.remove()
    count = len(values)
    gradients = torch.autograd.grad(values.sum(), outputs, allow_unused=True)
    outputs.clear()
    used: list[tuple[Tap, Tensor, Tensor]] = []
    for (tap, x), g in zip(calls, gradients, strict=True):
        if g is None:
            continue
        if len(x) != count:
            raise ConfigError(
                f"a trained layer was called with {len(x)} rows for {count} examples; "
                "this loss is not row by row"
            )
        rows = (x.reshape(count, -1, x.shape[-1]), g.reshape(count, -1, g.shape[-1]))
        used.append((tap, *rows))
    return count, used


def clipped_sum(
    losses: Callable[[], Tensor],
    taps: list[Tap],
    coefficients: Callable[[Tensor], Tensor],
) -> dict[Tensor, Tensor]:
    """Sum the examples' gradients, each times a coefficient of its norm.

    Args:
        losses: Runs the model; returns a loss per example, shape (B,).
        taps: From `taps_of`; call this within `merged`.
        coefficients: Turns norms (B,) into factors (B,), 0 where a norm is not finite.

    Returns:
        The sum, by parameter; one that no example used is left out.

    Raises:
        ConfigError: A layer's rows are not the examples.
    """
    count, used = _passes(losses, taps)
    found: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
    with torch.no_grad():
        for tap, x, g in used:
            for parameter, left, right in tap.factors(x, g):
                if parameter in found:  # a layer that is called twice: its places add up
                    before = found[parameter]
                    left, right = (
                        torch.cat(pair, dim=1) for pair in zip(before, (left, right), strict=True)
                    )
                found[parameter] = (left, right)
        squares = torch.zeros(count)
        for left, right in found.values():
            squares += _squared_norms(left, right)
        norms = squares.sqrt()
        factor = coefficients(norms)
        sums: dict[Tensor, Tensor] = {}
        # NaN · 0 is NaN: where an example is not finite, it is taken out before the sum.
        broken = not bool(torch.isfinite(norms).all())
        for parameter, (left, right) in found.items():
            if broken:
                left, right = (torch.nan_to_num(side, 0.0, 0.0, 0.0) for side in (left, right))
            sums[parameter] = _weighted_sum(left, right, factor)
    return sums
