"""Per-example gradients against Opacus, plain loops and each other; sensitivity under attack."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvlm.adapters import AdapterSpec, FlatView, attach
from fedvlm.errors import BudgetExceeded, ConfigError
from fedvlm.models.vlm import VLM
from fedvlm.privacy import Ledger, SecureNoise, SimulatedNoise
from fedvlm.privacy import dpsgd as under_test
from fedvlm.privacy.dpsgd import (
    MARGIN,
    DPSGDSettings,
    clipped_gradient_sum,
    per_example_gradients,
    train_privately,
)
from fedvlm.privacy.losses import (
    BankContrastive,
    ClassPrompts,
    GroupedInfoNCE,
    group_batch,
    logit_dp_sensitivity,
    refuse_infonce,
)
from fedvlm.seeds import ExperimentSeed
from tests.fedvlm.conftest import tiny_backbone, tiny_inputs

ROWS = 5


def _model(kind="lora"):
    vlm = VLM(tiny_backbone("clip"))
    view = attach(vlm, AdapterSpec(kind, rank=2, tokens=2), ExperimentSeed(0))
    vector = np.random.default_rng(0).normal(0, 0.1, view.size).astype(np.float32)
    view.write(vector)  # LoRA's B starts at zero, where half of the gradients vanish
    return vlm, view


def _bank():
    rng = torch.Generator().manual_seed(5)
    return BankContrastive(
        *(F.normalize(torch.randn(7, 16, generator=rng), dim=-1) for _ in range(2))
    )


def _pairs(rows=ROWS):
    images, texts = tiny_inputs("clip", rows)
    return {"image": images, "text": texts}


def _prompts_and_labels(classes):
    _, prompts = tiny_inputs("clip", classes)
    images, _ = tiny_inputs("clip", ROWS)
    return ClassPrompts(prompts), {"image": images, "label": torch.arange(ROWS) % classes}


def _loop(vlm, view, loss, batch):
    """Differentiate each unit by itself with ordinary autograd: the plainest oracle."""
    rows = []
    count = len(batch["label"]) if "label" in batch else len(batch["text"]["input_ids"])
    for row in range(count):
        one = torch.utils._pytree.tree_map(lambda v, r=row: v[r : r + 1], batch)
        gradients = torch.autograd.grad(
            loss(vlm, one)[0], view.parameters, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([g.reshape(-1) for g in gradients]).double().numpy())
    return np.stack(rows)


def _clipped(rows, clip_norm):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows * np.minimum(1, (1 - MARGIN) * clip_norm / norms)).sum(axis=0)


@pytest.mark.parametrize("kind", ["lora", "ffa-lora", "prompt", "feature"])
def test_both_ways_agree_with_a_loop(kind, monkeypatch):
    vlm, view = _model(kind)
    loss, batch = _bank(), _pairs()
    rows = _loop(vlm, view, loss, batch)
    clip_norm = float(np.median(np.linalg.norm(rows, axis=1)))
    expected = _clipped(rows, clip_norm)
    scale = np.abs(expected).max()
    got = clipped_gradient_sum(vlm, view, loss, batch, clip_norm, physical_batch=2)
    assert np.abs(got - expected).max() < 1e-4 * scale
    monkeypatch.setattr(under_test, "taps_of", lambda vlm, trained: None)
    by_vmap = clipped_gradient_sum(vlm, view, loss, batch, clip_norm, physical_batch=3)
    assert np.abs(by_vmap - expected).max() < 1e-4 * scale


@pytest.mark.parametrize("trained", ["lora_A", "lora_B", "q_proj", "projection"])
def test_a_part_of_lora_agrees_with_a_loop(trained):
    vlm, _ = _model()
    for name, parameter in vlm.named_parameters():
        parameter.requires_grad_("lora_" in name and trained in name)
    view, loss, batch = FlatView(vlm), _bank(), _pairs()
    rows = _loop(vlm, view, loss, batch)
    clip_norm = float(np.median(np.linalg.norm(rows, axis=1)))
    expected = _clipped(rows, clip_norm)
    assert under_test.taps_of(vlm, view.parameters) is not None
    got = clipped_gradient_sum(vlm, view, loss, batch, clip_norm)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_trained_base_layer_agrees_with_a_loop():
    vlm, _ = _model()
    layer = vlm.get_submodule(next(n for n, _ in vlm.named_modules() if n.endswith("fc1")))
    for parameter in layer.base_layer.parameters():
        parameter.requires_grad_(True)  # such a LoRA can't be merged: its parts are taken singly
    view, loss, batch = FlatView(vlm), _bank(), _pairs()
    rows = _loop(vlm, view, loss, batch)
    expected = _clipped(rows, 0.5)
    taps = under_test.taps_of(vlm, view.parameters)
    assert taps is not None
    assert any(tap.lora is None for tap in taps)
    got = clipped_gradient_sum(vlm, view, loss, batch, 0.5)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


class _Twice(BankContrastive):
    """A loss that calls the image tower twice a step, on two inputs."""

    def __call__(self, vlm, batch):
        flipped = {"pixel_values": batch["image"]["pixel_values"].flip(-1)}
        other = {"image": flipped, "text": batch["text"]}
        return super().__call__(vlm, batch) + super().__call__(vlm, other)


def test_layers_that_are_called_twice_agree_with_a_loop():
    vlm, view = _model()
    rng = torch.Generator().manual_seed(5)
    loss = _Twice(*(F.normalize(torch.randn(7, 16, generator=rng), dim=-1) for _ in range(2)))
    batch = _pairs()
    rows = _loop(vlm, view, loss, batch)
    clip_norm = float(np.median(np.linalg.norm(rows, axis=1)))
    expected = _clipped(rows, clip_norm)
    got = clipped_gradient_sum(vlm, view, loss, batch, clip_norm)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_base_weights_come_back_bit_by_bit_also_after_an_error():
    vlm, view = _model()
    before = {name: p.detach().clone() for name, p in vlm.named_parameters()}

    class Broken(BankContrastive):
        def __call__(self, vlm, batch):
            super().__call__(vlm, batch)
            raise RuntimeError("in the middle")

    rng = torch.Generator().manual_seed(5)
    broken = Broken(*(F.normalize(torch.randn(7, 16, generator=rng), dim=-1) for _ in range(2)))
    with pytest.raises(RuntimeError, match="in the middle"):
        clipped_gradient_sum(vlm, view, broken, _pairs(), 0.5)
    first = clipped_gradient_sum(vlm, view, _bank(), _pairs(), 0.5)
    assert all(torch.equal(p, before[name]) for name, p in vlm.named_parameters())
    assert np.array_equal(first, clipped_gradient_sum(vlm, view, _bank(), _pairs(), 0.5))


def test_a_loss_that_is_not_row_by_row_is_found_out():
    class Wrong(ClassPrompts):
        rowwise = True  # it is not: the prompts have rows of their own

    vlm, view = _model()
    _, batch = _prompts_and_labels(3)
    _, prompts = tiny_inputs("clip", 3)
    with pytest.raises(ConfigError, match="not row by row"):
        clipped_gradient_sum(vlm, view, Wrong(prompts), batch, 0.5)


@pytest.mark.parametrize("classes", [3, ROWS])
def test_class_prompts_agree_with_a_loop_also_where_k_is_b(classes):
    vlm, view = _model()
    loss, batch = _prompts_and_labels(classes)
    rows = _loop(vlm, view, loss, batch)
    expected = _clipped(rows, 0.5)
    got = clipped_gradient_sum(vlm, view, loss, batch, 0.5)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_opacus_agrees():
    opacus = pytest.importorskip("opacus")
    vlm, _ = _model()
    loss, batch = _bank(), _pairs()
    mine = per_example_gradients(vlm, loss, batch)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.vlm = vlm

        def forward(self, pixels, ids, mask):
            text = {"input_ids": ids, "attention_mask": mask}
            return loss(self.vlm, {"image": {"pixel_values": pixels}, "text": text})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = opacus.GradSampleModule(Whole(), loss_reduction="sum")
        wrapped.train()
        text = batch["text"]
        wrapped(
            batch["image"]["pixel_values"], text["input_ids"], text["attention_mask"]
        ).sum().backward()
    checked = 0
    for name, parameter in vlm.named_parameters():
        if parameter.requires_grad:
            theirs = parameter.grad_sample
            scale = theirs.abs().max().item() + 1e-6
            assert (mine[name] - theirs).abs().max().item() < 1e-3 * scale
            checked += 1
    assert checked == len(mine)


def test_one_example_moves_the_sum_by_the_clip_norm_at_most():
    vlm, view = _model()
    for loss in (_bank(), _prompts_and_labels(3)[0]):
        batch = _pairs() if isinstance(loss, BankContrastive) else _prompts_and_labels(3)[1]
        for clip_norm in (1e-3, 0.3, 100.0):
            full = clipped_gradient_sum(vlm, view, loss, batch, clip_norm)
            for row in range(ROWS):
                kept = [r for r in range(ROWS) if r != row]
                fewer = torch.utils._pytree.tree_map(lambda v, k=kept: v[k], batch)
                less = clipped_gradient_sum(vlm, view, loss, fewer, clip_norm)
                assert np.linalg.norm(full - less) <= loss.factor * clip_norm


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("layers", [True, False])
def test_a_poisoned_example_moves_no_more(value, layers, monkeypatch):
    if not layers:
        monkeypatch.setattr(under_test, "taps_of", lambda vlm, trained: None)
    vlm, view = _model()
    batch = _pairs()
    clean = clipped_gradient_sum(
        vlm, view, _bank(), torch.utils._pytree.tree_map(lambda v: v[1:], batch), 0.5
    )
    batch["image"]["pixel_values"] = batch["image"]["pixel_values"].clone()
    batch["image"]["pixel_values"][0] = value
    got = clipped_gradient_sum(vlm, view, _bank(), batch, 0.5)
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - clean) <= 0.5


def test_a_group_costs_two_clip_norms_and_infonce_far_more():
    vlm, view = _model()
    images, texts = tiny_inputs("clip", 8)

    def shaped(mask):
        def deal(inputs):
            return {k: v.view(2, 4, *v.shape[1:]) for k, v in inputs.items()}

        return {"image": deal(images), "text": deal(texts), "mask": torch.tensor(mask)}

    whole = [[True] * 4, [True] * 4]
    fewer = [[True, True, True, False], [True] * 4]
    loss, clip_norm = GroupedInfoNCE(), 1e-3
    a = clipped_gradient_sum(vlm, view, loss, shaped(whole), clip_norm)
    b = clipped_gradient_sum(vlm, view, loss, shaped(fewer), clip_norm)
    moved = np.linalg.norm(a - b) / clip_norm
    assert loss.factor == 2.0
    assert 0 < moved <= 2.0
    with pytest.raises(ConfigError, match="InfoNCE is refused"):
        refuse_infonce()


def test_t1_what_a_step_releases_is_as_sensitive_as_its_loss():
    settings = DPSGDSettings(0.5, 1.1, 0.1, 3, 8.0, 1e-3)
    assert settings.mechanism(_bank()).sensitivity == 0.5
    assert settings.mechanism(GroupedInfoNCE).sensitivity == 1.0


@pytest.mark.parametrize("by_layers", [True, False])
def test_t1_clipped_gradients_are_weighted_as_the_loss_says(by_layers, monkeypatch):
    vlm, view = _model("lora")
    loss, batch = _bank(), _pairs()
    rows = _loop(vlm, view, loss, batch)
    weights = np.linspace(-2, 1, len(rows))
    clip_norm = float(np.median(np.linalg.norm(rows, axis=1)))
    factor = np.minimum(1, (1 - MARGIN) * clip_norm / np.linalg.norm(rows, axis=1))
    expected = (weights * factor) @ rows
    units = torch.from_numpy(weights).float()
    monkeypatch.setattr(loss, "units", lambda vlm, batch: (batch, units))
    if not by_layers:
        monkeypatch.setattr(under_test, "taps_of", lambda vlm, trained: None)
    got = clipped_gradient_sum(vlm, view, loss, batch, clip_norm, physical_batch=2)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_groups_are_dealt_by_the_example_alone():
    class Pairs:
        caption_of = np.arange(100)

        def images(self, rows):
            return {"pixel_values": torch.from_numpy(rows)[:, None].float()}

        def captions(self, rows):
            return {"input_ids": torch.from_numpy(rows)[:, None]}

    def members(indices):
        batch = group_batch(Pairs(), np.array(indices), 5, 4, ExperimentSeed(0))
        ids, mask = batch["text"]["input_ids"][:, :, 0], batch["mask"]
        return {frozenset(ids[g][mask[g]].tolist()) for g in range(len(ids))}

    everyone = list(range(0, 60, 4))
    whole = members(everyone)
    for gone in everyone:
        fewer = members([i for i in everyone if i != gone])
        assert len(whole - fewer) <= 1
        assert len(fewer - whole) <= 1


def test_plain_infonce_really_breaks_its_sensitivity():
    # What refusing it prevents: one image that suits every caption turns all rows' gradients
    # round at once, though each of them is clipped.
    rows, clip_norm = 12, 1e-3
    theta = torch.ones(rows + 1, requires_grad=True)
    shared = torch.eye(rows + 1)[rows]
    texts = torch.eye(rows + 1)[:rows] + shared
    before = torch.eye(rows + 1)[:rows].clone()
    after = before.clone()
    after[0] = 5 * shared

    def clipped_sum(images):
        losses = F.cross_entropy(texts @ (theta * images).T, torch.arange(rows), reduction="none")
        total = torch.zeros_like(theta)
        for each in losses:
            (g,) = torch.autograd.grad(each, theta, retain_graph=True)
            total += g * min(1.0, clip_norm / g.norm().item())
        return total

    assert (clipped_sum(after) - clipped_sum(before)).norm().item() > 5 * clip_norm


def test_logit_dp_formula():
    # Removing pair n from mean-over-rows InfoNCE: the change of ∂L/∂Z, summed in absolute value,
    # is never above the formula, and comes near it at its worst case.
    tau, n = 0.5, 6
    bound = logit_dp_sensitivity(1.0, tau, n)
    worst = 0.0
    rng = np.random.default_rng(0)

    def coefficients(z):
        p = np.exp(z / tau)
        return (p / p.sum(axis=1, keepdims=True) - np.eye(len(z))) / (n * tau)

    for trial in range(300):
        z = rng.uniform(-1, 1, (n, n)) if trial else -np.ones((n, n))
        if not trial:
            z[:, -1] = 1.0
        full, less = coefficients(z), np.zeros((n, n))
        less[:-1, :-1] = coefficients(z[:-1, :-1])
        worst = max(worst, np.abs(full - less).sum())
    assert 0.8 * bound < worst <= bound * (1 + 1e-9)
    assert logit_dp_sensitivity(1.0, 0.01, 64) == pytest.approx(200, rel=0.01)


def _train(vlm, view, noise, ledger, steps=3, rate=0.5):
    settings = DPSGDSettings(0.5, 2.0, rate, steps, rate * ROWS, 1e-2, physical_batch=2)
    batch = _pairs()

    def make(rows):
        return torch.utils._pytree.tree_map(lambda v: v[torch.from_numpy(rows)], batch)

    train_privately(vlm, view, make, ROWS, _bank(), settings, noise, ledger)


def test_training_pays_first_and_then_moves():
    vlm, view = _model()
    before = view.read()
    ledger = Ledger("example", 20.0, 1e-5)
    _train(vlm, view, SecureNoise(), ledger)
    assert ledger.releases == 3
    assert not np.array_equal(before, view.read())
    poor = Ledger("example", 0.1, 1e-5)
    before = view.read()
    with pytest.raises(BudgetExceeded):
        _train(vlm, view, SecureNoise(), poor)
    assert np.array_equal(before, view.read())
    assert poor.releases == 0


def test_empty_batches_are_steps_too():
    # At a rate of 10^-9 no example is ever drawn: the adapter still moves, by noise alone.
    vlm, view = _model()
    before = view.read()
    settings = DPSGDSettings(0.5, 1.0, 1e-9, 2, 1.0, 1e-2)
    ledger = Ledger("example", 20.0, 1e-5)

    def never(rows):
        raise RuntimeError("no batch was expected")

    noise = SimulatedNoise(ExperimentSeed(0), "empty")
    train_privately(vlm, view, never, ROWS, _bank(), settings, noise, ledger)
    assert not np.array_equal(before, view.read())
    assert ledger.releases == 2


class _Coupled(BankContrastive):
    """Says that it is row by row, and isn't, in one of several ways."""

    way = "mean"

    def __call__(self, vlm, batch):
        losses = super().__call__(vlm, batch)
        if self.way == "mean":
            return losses - losses.mean()
        if self.way == "detached":  # no gradient crosses rows, and yet each feels the others
            return losses * losses.detach().sum()
        if self.way == "count":
            return losses / len(losses)
        if self.way == "neighbour":
            return losses + losses.roll(1)
        return losses


def _coupled(way):
    rng = torch.Generator().manual_seed(5)
    loss = _Coupled(*(F.normalize(torch.randn(7, 16, generator=rng), dim=-1) for _ in range(2)))
    loss.way = way
    return loss


@pytest.mark.parametrize("way", ["mean", "detached", "count", "neighbour"])
def test_n4_a_loss_that_couples_its_rows_is_refused(way):
    """N4: one example moved the sum by 1.37 C."""
    vlm, view = _model()
    with pytest.raises(ConfigError, match="row by row"):
        clipped_gradient_sum(vlm, view, _coupled(way), _pairs(), 0.5)
    # Once refused it stays refused.
    with pytest.raises(ConfigError, match="row by row"):
        clipped_gradient_sum(vlm, view, _coupled(way), _pairs(), 0.5)


def test_n4_a_sound_loss_is_looked_at_once_and_rows_that_are_broken_do_not_matter(monkeypatch):
    from fedvlm.privacy import _coupling

    seen = []
    real = _coupling.passes
    monkeypatch.setattr(_coupling, "passes", lambda *a: seen.append(1) or real(*a))
    vlm, view = _model()
    loss, batch = _coupled("none"), _pairs()
    one = torch.utils._pytree.tree_map(lambda v: v[:1], batch)
    clipped_gradient_sum(vlm, view, loss, one, 0.5)
    assert not seen  # a single row tells nothing
    batch["image"]["pixel_values"] = batch["image"]["pixel_values"].clone()
    batch["image"]["pixel_values"][0] = float("nan")
    for _ in range(3):
        clipped_gradient_sum(vlm, view, loss, batch, 0.5)
    assert len(seen) == 3
    other, second = _model()
    clipped_gradient_sum(other, second, loss, batch, 0.5)
    assert len(seen) == 6


@pytest.mark.parametrize("norm", [1e-30, 1.0, 1e10, 3e36, 3e38, float("inf"), float("nan")])
@pytest.mark.parametrize("clip_norm", [1e-30, 1e-4, 1.0, 1e4])
def test_n5_no_factor_lets_more_than_the_clip_through(norm, clip_norm):
    """N5: at a norm of 3e38 and C = 1e-4 the factor was denormal, and C exceeded."""
    norms = torch.tensor([norm], dtype=torch.float32)
    factor = under_test._coefficients(norms, clip_norm).double().item()
    assert factor >= 0
    if np.isfinite(norm):
        assert factor * norms.double().item() <= clip_norm
        if norm <= 1e10 and norm <= clip_norm / 2:
            assert factor == 1.0


class _Recorded(SimulatedNoise):
    """Keeps what it drew."""

    def __init__(self, number):
        super().__init__(ExperimentSeed(number), "recorded")
        self.samples, self.added = [], []

    def uniform(self, size):
        drawn = super().uniform(size)
        self.samples.append(drawn)
        return drawn

    def noised(self, values, std):
        out = super().noised(values, std)
        self.added.append((std, out - values))
        return out


def test_t1_every_step_is_noised_divided_by_the_public_number_and_paid_for():
    """T1: a last step without noise, the batch's own size, a step too many: each changes this.

    The steps are taken again by plain loops and Adam, from the coins and the noise that were drawn.
    """
    vlm, view = _model()
    start = view.read()
    rate, steps, clip_norm, expected, speed = 0.5, 4, 0.05, 3.7, 1e-2
    settings = DPSGDSettings(clip_norm, 0.8, rate, steps, expected, speed, physical_batch=2)
    batch, loss = _pairs(), _bank()
    noise, ledger = _Recorded(3), Ledger("example", 100.0, 1e-5)

    def make(rows):
        return torch.utils._pytree.tree_map(lambda v: v[torch.from_numpy(rows)], batch)

    train_privately(vlm, view, make, ROWS, loss, settings, noise, ledger)
    trained = view.read()
    assert len(noise.samples) == len(noise.added) == steps == ledger.releases
    assert {std for std, _ in noise.added} == {0.8 * clip_norm}
    assert len({len(np.flatnonzero(coins < rate)) for coins in noise.samples}) > 1
    view.write(start)
    optimizer = torch.optim.Adam(view.parameters, lr=speed)
    for coins, (_, added) in zip(noise.samples, noise.added, strict=True):
        drawn = np.flatnonzero(coins < rate)
        total = np.zeros(view.size)
        if len(drawn):
            total = _clipped(_loop(vlm, view, loss, make(drawn)), clip_norm)
        mean = torch.from_numpy((total + added) / expected).float()
        for parameter, piece in zip(
            view.parameters, mean.split([p.numel() for p in view.parameters]), strict=True
        ):
            parameter.grad = piece.view_as(parameter)
        optimizer.step()
    assert np.abs(trained - view.read()).max() < 0.02 * np.abs(trained - start).max()
