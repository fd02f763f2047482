"""Example-level DP-SGD on adapters (Abadi et al. 2016), with Poisson batches.

Per-example gradients come from `torch.func.vmap(grad)`, chunk by chunk. Where every trained
parameter belongs to a linear layer and every row to one example, the norms are read off the
layers' inputs and output gradients instead, and only the clipped sum is formed: the same sum
without any per-example gradient (Bu et al. 2023, "book-keeping").
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils import _pytree as pytree

from fedvlm.adapters.flat import FlatView
from fedvlm.models.vlm import VLM
from fedvlm.privacy._coupling import check_rowwise
from fedvlm.privacy._layerwise import clipped_sum, merged, taps_of
from fedvlm.privacy.ledger import Ledger
from fedvlm.privacy.losses import Batch, PrivateLoss, needs_loop
from fedvlm.privacy.mechanisms import GaussianMechanism
from fedvlm.privacy.noise import NoiseSource, poisson_sample


@contextmanager
def _plain_attention(vlm: VLM) -> Iterator[None]:
    """Use attention that vmap has a rule for; the fused kernel would run example by example."""
    backbone: Any = vlm.backbone
    model = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class _Losses(nn.Module):
    """A model with a loss, as one module that `functional_call` can take."""

    def __init__(self, vlm: VLM, loss: PrivateLoss) -> None:
        super().__init__()
        self.vlm = vlm
        self._loss = loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self.vlm, batch)


def _without_causal_mask(vlm: VLM, batch: Batch) -> Batch:
    """Drop CLIP's padding mask: building it branches on values, which vmap can't.

    CLIP's text tower is causal, padded on the right and read at the end token, so what is padded
    can't reach what is read.
    """
    config: Any = vlm.backbone.config
    if config.model_type != "clip" or "text" not in batch:
        return batch

    def without(inputs: Any) -> Any:
        if not isinstance(inputs, Mapping):
            return inputs
        dropped = "attention_mask" if "input_ids" in inputs else None
        return {key: without(value) for key, value in inputs.items() if key != dropped}

    return without(batch)


# Single precision's error in a norm and in a sum of clipped gradients, relative to C: taken off the
# clip, so that C is never exceeded.
MARGIN = 1e-4
_LEAST_FACTOR = 1e-36  # near 10^-38 a factor is denormal and has few digits: such a unit counts 0


def _coefficients(norms: Tensor, clip_norm: float) -> Tensor:
    """Return min(1, C/norm) for each unit, and 0 for a unit whose gradient is not finite."""
    factor = ((1 - MARGIN) * clip_norm / norms.clamp(min=1e-30)).clamp(max=1.0)
    sound = torch.isfinite(norms) & (factor >= _LEAST_FACTOR)
    return torch.where(sound, factor, torch.zeros_like(factor))


def per_example_gradients(vlm: VLM, loss: PrivateLoss, batch: Batch) -> dict[str, Tensor]:
    """Return each unit's gradient, by parameter name: shape (B, …)."""
    module = _Losses(vlm, loss)
    trained = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    fixed = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
    fixed |= dict(module.named_buffers())

    def one(parameters: dict[str, Tensor], unit: Batch) -> Tensor:
        alone = pytree.tree_map(lambda value: value[None], unit)
        return functional_call(module, {**parameters, **fixed}, (alone,))[0]

    if needs_loop(vlm):
        units = len(pytree.tree_leaves(batch)[0])
        rows = [pytree.tree_map(lambda value, i=i: value[i], dict(batch)) for i in range(units)]
        each = [grad(one)(trained, row) for row in rows]
        found = {name: torch.stack([gradient[name] for gradient in each]) for name in trained}
        return {name.removeprefix("vlm."): value for name, value in found.items()}
    with _plain_attention(vlm):
        found = vmap(grad(one), in_dims=(None, 0))(trained, _without_causal_mask(vlm, batch))
    return {name.removeprefix("vlm."): value for name, value in found.items()}


def _sum_by_vmap(
    vlm: VLM, loss: PrivateLoss, batch: Batch, coefficients: Callable[[Tensor], Tensor]
) -> dict[Tensor, Tensor]:
    gradients = per_example_gradients(vlm, loss, batch)
    flat = [value.flatten(1) for value in gradients.values()]
    norms = torch.stack([value.norm(dim=1) for value in flat]).norm(dim=0)
    factor = coefficients(norms)
    named = dict(vlm.named_parameters())
    # NaN · 0 is NaN: a unit that is not finite is taken out before the sum.
    return {
        named[name]: torch.einsum("b,b...->...", factor, torch.nan_to_num(value, 0.0, 0.0, 0.0))
        for name, value in gradients.items()
    }


def clipped_gradient_sum(
    vlm: VLM,
    view: FlatView,
    loss: PrivateLoss,
    batch: Batch,
    clip_norm: float,
    physical_batch: int = 32,
) -> NDArray[np.float64]:
    """Sum the units' gradients, each clipped to a norm.

    Args:
        vlm: A model with an adapter.
        view: Its trainable parameters.
        loss: A loss per unit.
        batch: Inputs, one row a unit; may be empty.
        clip_norm: C, positive.
        physical_batch: Most units in memory at a time; does not change the sum.

    Returns:
        Shape (P,), float64, in the view's order.

    Guarantees:
        Adding or removing one example moves the sum by at most `loss.factor * clip_norm`, the
        rounding of float32 included for parameters of up to 10^6 entries. A unit whose gradient
        is not finite counts as zero, and so does one of a norm 10^36 times C.

    Raises:
        ConfigError: The loss says that it is row by row, and is not. That is looked at once for a
            loss and a model: a row is replaced and left out, and the others must stay as they are.
    """
    batch, weights = loss.units(vlm, batch)
    units = len(pytree.tree_leaves(batch)[0])
    taps = taps_of(vlm, view.parameters) if loss.rowwise else None
    total = torch.zeros(view.size, dtype=torch.float64)
    with merged(taps or []):
        for start in range(0, units, physical_batch):
            rows = slice(start, min(start + physical_batch, units))
            part = pytree.tree_map(lambda value, r=rows: value[r], dict(batch))
            scale = 1.0 if weights is None else weights[rows]

            def coefficients(norms: Tensor, scale: Tensor | float = scale) -> Tensor:
                return _coefficients(norms, clip_norm) * scale

            if taps is not None:
                check_rowwise(loss, vlm, part, taps)
                sums = clipped_sum(lambda p=part: loss(vlm, p), taps, coefficients)
            else:
                sums = _sum_by_vmap(vlm, loss, part, coefficients)
            pieces = total.split([p.numel() for p in view.parameters])
            for parameter, piece in zip(view.parameters, pieces, strict=True):
                if parameter in sums:  # one that no example used has a gradient of zero
                    piece += sums[parameter].reshape(-1)
    return total.numpy()


@dataclass(frozen=True)
class DPSGDSettings:
    """How an adapter is trained under example-level DP.

    Attributes:
        clip_norm: C of a unit's gradient.
        noise_multiplier: Noise over the sensitivity.
        sample_rate: Chance of each example to be in a step.
        steps: Number of steps.
        expected_batch: Public n that a step's sum is divided by.
        learning_rate: Adam's.
        physical_batch: Most units in memory at a time.
    """

    clip_norm: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    expected_batch: float
    learning_rate: float
    physical_batch: int = 32

    def mechanism(self, loss: PrivateLoss | type[PrivateLoss]) -> GaussianMechanism:
        """Return what one step under a loss releases."""
        return GaussianMechanism(
            loss.factor * self.clip_norm, self.noise_multiplier, self.sample_rate
        )


def release_step(
    optimizer: torch.optim.Optimizer,
    view: FlatView,
    total: NDArray[np.float64],
    mechanism: GaussianMechanism,
    expected_batch: float,
    noise: NoiseSource,
) -> None:
    """Noise a sum of clipped gradients, and take the optimiser's step with its mean."""
    released = torch.from_numpy(mechanism.release(total, noise) / expected_batch).float()
    pieces = released.split([p.numel() for p in view.parameters])
    for parameter, piece in zip(view.parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)
    optimizer.step()


def private_optimizer(view: FlatView, learning_rate: float) -> torch.optim.Optimizer:
    """Return the optimiser of noised gradients: Adam."""
    return torch.optim.Adam(view.parameters, lr=learning_rate, fused=True)


def train_privately(
    vlm: VLM,
    view: FlatView,
    make_batch: Callable[[NDArray[np.int64]], Batch],
    count: int,
    loss: PrivateLoss,
    settings: DPSGDSettings,
    noise: NoiseSource,
    ledger: Ledger,
    planted: NDArray[np.float32] | None = None,
) -> None:
    """Train an adapter in place with DP-SGD.

    Args:
        vlm: A model with an adapter.
        view: Its trainable parameters.
        make_batch: Inputs of examples by their numbers in [0, count).
        count: Examples that there are.
        loss: A loss per unit.
        settings: Clip, noise, sampling, steps.
        noise: Source of noise and of sampling coins.
        ledger: Pays for all steps before the first is taken.
        planted: Shape (K, P): gradients of K further units, the same in every step, sampled and
            clipped like those of examples; for audits.

    Guarantees:
        The trained adapter is example-level DP as the ledger says, against whoever sees it. Adam
        works on noised gradients only. Steps without an example are taken like all others.

    Raises:
        BudgetExceeded: The steps don't fit the budget; nothing was trained.
    """
    mechanism = settings.mechanism(loss)
    ledger.spend(mechanism, settings.steps)
    optimizer = private_optimizer(view, settings.learning_rate)
    vlm.eval()
    units = count + (0 if planted is None else len(planted))
    for _ in range(settings.steps):
        sampled = poisson_sample(units, settings.sample_rate, noise)
        chosen, further = sampled[sampled < count], sampled[sampled >= count] - count
        total = np.zeros(view.size)
        if len(chosen):
            total = clipped_gradient_sum(
                vlm, view, loss, make_batch(chosen), settings.clip_norm, settings.physical_batch
            )
        if planted is not None and len(further):
            rows = torch.from_numpy(planted[further])
            total += (_coefficients(rows.norm(dim=1), settings.clip_norm) @ rows).double().numpy()
        release_step(optimizer, view, total, mechanism, settings.expected_batch, noise)
    optimizer.zero_grad(set_to_none=True)
