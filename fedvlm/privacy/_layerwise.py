"""The clipped sum of per-example gradients, layer by layer, without any per-example gradient.

Where row i of each layer's input belongs to example i, a linear layer's gradient for example i
is Σ_t g_t x_tᵀ over the layer's inputs x and output gradients g. Its norm comes from these, and so
does the clipped sum, by one forward and one backward pass (Bu et al. 2023, "book-keeping").

LoRA gets more: W + sBA is put in W's place for the two passes. What reaches the layer above and the
layer below is the same, and both factors' gradients follow from the layer's x and g alone.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedvlm.errors import ConfigError
from fedvlm.models.generative import GenerativeVLM
from fedvlm.models.vlm import VLM

# Trained parameters with left (B, T, o) and right (B, T, i): for each example, leftᵀ right is the
# gradient of the parameters, one below the other.
Factors = tuple[tuple[Tensor, ...], Tensor, Tensor]


@dataclass(frozen=True)
class Tap:
    """A linear layer that trained parameters act through.

    Attributes:
        layer: The layer that is called.
        trained: Its trained parameters, or those of the LoRA around it.
        lora: The LoRA layer around it, or None.
    """

    layer: nn.Linear
    trained: tuple[Tensor, ...]
    lora: Any = None

    @property
    def pair(self) -> tuple[Tensor, Tensor, float]:
        """LoRA's A (r, in), B (out, r) and scale."""
        (name,) = self.lora.active_adapters
        a, b = self.lora.lora_A[name].weight, self.lora.lora_B[name].weight
        return a, b, float(self.lora.scaling[name])


def _lora_tap(lora: Any) -> Tap | None:
    """Return the tap of a peft LoRA layer; None for a kind that doesn't merge exactly."""
    names = list(lora.active_adapters)
    if len(names) != 1 or type(lora.base_layer) is not nn.Linear or lora.lora_variant:
        return None
    (name,) = names
    own = (lora.base_layer.weight, lora.base_layer.bias)
    frozen = not any(p.requires_grad for p in own if p is not None)
    exact = isinstance(lora.lora_dropout[name], nn.Identity) and lora.lora_B[name].bias is None
    if not (frozen and exact) or lora.merged:
        return None
    weights = (lora.lora_A[name].weight, lora.lora_B[name].weight)
    return Tap(lora.base_layer, tuple(p for p in weights if p.requires_grad), lora)


def taps_of(vlm: VLM | GenerativeVLM, trained: Sequence[Tensor]) -> list[Tap] | None:
    """Return the layers that all trained parameters act through, or None where some don't.

    A weight that is shared with another module, as words' embeddings are with the last layer, acts
    through both: a layer alone would tell a part of its gradient.
    """
    lora_kind: Any = ()
    if hasattr(vlm.backbone, "peft_config"):
        from peft.tuners.lora import Linear as LoraLinear

        lora_kind = LoraLinear
    taps: list[Tap] = []
    inside: set[int] = set()  # LoRA's own linear layers, which its tap stands for
    for module in vlm.modules():
        tap = None
        if isinstance(module, lora_kind):
            tap = _lora_tap(module)
            inside |= {id(p) for p in tap.trained} if tap else set()
        elif type(module) is nn.Linear:
            own = (module.weight, module.bias)
            free = tuple(p for p in own if p is not None and p.requires_grad)
            tap = Tap(module, free) if any(id(p) not in inside for p in free) else None
        if tap is not None and tap.trained:
            taps.append(tap)
    held = {id(p) for tap in taps for p in tap.trained}
    owners = Counter(id(p) for m in vlm.modules() for p in m._parameters.values() if p is not None)
    alone = all(id(p) in held and owners[id(p)] == 1 for p in trained)
    return taps if alone else None


@contextmanager
def merged(taps: list[Tap]) -> Iterator[None]:
    """Put W + sBA in W's place; the weights come back bit by bit, not by subtraction."""
    before: list[tuple[Tap, Tensor]] = []
    try:
        for tap in taps:
            if tap.lora is None:
                continue
            with torch.no_grad():
                a, b, scale = tap.pair
                weight = torch.addmm(tap.layer.weight, b, a, alpha=scale)
            before.append((tap, tap.layer.weight.data))
            tap.layer.weight.data = weight
            tap.lora.merged_adapters.extend(tap.lora.active_adapters)
        yield
    finally:
        for tap, weight in before:
            tap.layer.weight.data = weight
            tap.lora.merged_adapters.clear()


# Below this share of (Σ_t ‖g_t‖‖x_t‖)², a squared norm by Gram matrices is mostly their rounding.
_CANCELLED = 1e-3


def _squared_norms(left: Tensor, right: Tensor) -> Tensor:
    """Return ‖leftᵀ right‖² for each example, in whichever of two ways is less work.

    Gram matrices can't tell a norm from zero where an example's places cancel: such an example
    would pass the clip with a gradient longer than C. Those examples are formed in full.
    """
    places, o, i = left.shape[1], left.shape[2], right.shape[2]
    if places == 1:
        return left.square().sum(dim=(1, 2)) * right.square().sum(dim=(1, 2))
    if 2 * places * (o + i) >= o * i:
        return _formed_squares(left, right)
    by_left = left @ left.transpose(1, 2)
    by_right = right @ right.transpose(1, 2)
    squares = (by_left * by_right).sum(dim=(1, 2))
    lengths = (by_left.diagonal(dim1=1, dim2=2) * by_right.diagonal(dim1=1, dim2=2)).sqrt()
    again = squares < _CANCELLED * lengths.sum(dim=1).square()
    if again.any():
        squares[again] = _formed_squares(left[again], right[again])
    return squares


def _formed_squares(left: Tensor, right: Tensor) -> Tensor:
    small, large = (left, right) if left.shape[2] < right.shape[2] else (right, left)
    return torch.linalg.vector_norm(small.transpose(1, 2) @ large, dim=(1, 2)).square()


def _weighted_sum(left: Tensor, right: Tensor, factor: Tensor) -> Tensor:
    """Return Σ_b factor_b · left_bᵀ right_b; the smaller side is the one that is scaled."""
    if left.shape[2] < right.shape[2]:
        left = left * factor[:, None, None]
    else:
        right = right * factor[:, None, None]
    return left.flatten(0, 1).T @ right.flatten(0, 1)


def _linear_factors(tap: Tap, x: Tensor, g: Tensor) -> Iterator[Factors]:
    layer = tap.layer
    if layer.weight.requires_grad:
        yield (layer.weight,), g, x
    if layer.bias is not None and layer.bias.requires_grad:
        yield (layer.bias,), g, torch.ones_like(g[:, :, :1])


def _lora_factors(taps: list[Tap], x: Tensor, gs: list[Tensor]) -> Iterator[Factors]:
    """Yield the factors of LoRA layers on one input, as query, key and value are, all at once."""
    pairs = [tap.pair for tap in taps]
    whole = torch.cat([scale * a for a, _, scale in pairs])
    hidden = (x @ whole.T).split([len(a) for a, _, _ in pairs], dim=2)
    for (_, b, _), g, h in zip(pairs, gs, hidden, strict=True):
        if b.requires_grad:
            yield (b,), g, h
    lower = [(a, g @ (scale * b)) for (a, b, scale), g in zip(pairs, gs, strict=True)]
    lower = [(a, u) for a, u in lower if a.requires_grad]
    if lower:
        yield tuple(a for a, _ in lower), torch.cat([u for _, u in lower], dim=2), x


@dataclass(frozen=True)
class _Call:
    """One call of a layer: its input x, and its output's gradient g."""

    tap: Tap
    x: Tensor
    g: Tensor


def _used_places(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out places without a gradient: above the last attention only one token has any."""
    places = g.shape[1]
    surely = (g[:, :, 0] != 0).sum(dim=1)  # the first of each place's numbers tells most of it
    if 2 * int(surely.max()) > places:
        return x, g
    used = g.abs().amax(dim=2) != 0
    most = max(1, int(used.sum(dim=1).max()))
    if 2 * most > places:
        return x, g
    rows = torch.arange(len(g))[:, None]
    kept = used.byte().topk(most, dim=1).indices
    return x[rows, kept], g[rows, kept]


def _factors(calls: list[_Call], count: int) -> Iterator[Factors]:
    once = len({id(call.tap) for call in calls}) == len(calls)
    fans: dict[int, tuple[Tensor, list[tuple[Tap, Tensor]]]] = {}
    for number, call in enumerate(calls):
        whole = call.x.detach().reshape(count, -1, call.x.shape[-1])
        x, g = _used_places(whole, call.g.reshape(count, -1, call.g.shape[-1]))
        if call.tap.lora is None:
            yield from _linear_factors(call.tap, x, g)
            continue
        # A layer that is called again must come with the same parameters each time: alone.
        shared = once and x is whole
        fans.setdefault(id(call.x) if shared else -number - 1, (x, []))[1].append((call.tap, g))
    for x, fan in fans.values():
        yield from _lora_factors([tap for tap, _ in fan], x, [g for _, g in fan])


def passes(losses: Callable[[], Tensor], taps: list[Tap]) -> tuple[Tensor, list[_Call]]:
    """Run forward and backward; returns the losses, and the calls that they depend on."""
    calls: list[tuple[Tap, Tensor]] = []
    outputs: list[Tensor] = []

    def watch(tap: Tap) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:  # below the lowest trained layer nothing does
                output.requires_grad_()
            calls.append((tap, inputs[0]))
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
    used = [_Call(tap, x, g) for (tap, x), g in zip(calls, gradients, strict=True) if g is not None]
    for call in used:
        if len(call.x) != count:
            raise ConfigError(
                f"a trained layer was called with {len(call.x)} rows for {count} examples; "
                "this loss is not row by row"
            )
    return values.detach(), used


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
    values, used = passes(losses, taps)
    count = len(values)
    found: dict[tuple[Tensor, ...], tuple[Tensor, Tensor]] = {}
    sums: dict[Tensor, Tensor] = {}
    with torch.no_grad():
        for parameters, left, right in _factors(used, count):
            if parameters in found:  # a layer that is called twice: its places add up
                before = found[parameters]
                left, right = (
                    torch.cat(pair, dim=1) for pair in zip(before, (left, right), strict=True)
                )
            found[parameters] = (left, right)
        squares = torch.zeros(count)
        for left, right in found.values():
            squares += _squared_norms(left, right)
        norms = squares.sqrt()
        factor = coefficients(norms)
        # NaN · 0 is NaN: where an example is not finite, it is taken out before the sum.
        broken = not bool(torch.isfinite(norms).all())
        for parameters, (left, right) in found.items():
            if broken:
                left, right = (torch.nan_to_num(side, 0.0, 0.0, 0.0) for side in (left, right))
            parts = _weighted_sum(left, right, factor).split([len(p) for p in parameters])
            sums |= dict(zip(parameters, parts, strict=True))
    return sums
