"""The attacks have teeth: canaries, exposure, recall gap, inversion."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedvlm.adapters.feature import FeatureGate
from fedvlm.canaries import Canaries
from fedvlm.errors import ConfigError
from fedvlm.leakage.audit import AuditResult
from fedvlm.leakage.canaries import andrew_estimate, clip, exposure, recall_gap
from fedvlm.leakage.epsilon import gaussian_epsilon
from fedvlm.leakage.inversion import (
    gradient_of,
    invert_gate,
    invert_gradient,
    invert_linear,
    observed_gradient,
)
from fedvlm.leakage.units import Kind, Unit
from fedvlm.leakage.vantage import Vantage, WrongVantageError

COUNT, SIZE, DELTA = 1000, 20_000, 1e-5


def _audit(sigma: float, *, claimed_sigma: float, clipped: bool = True, length: float = 1.0):
    """Run one round of client-level DP over canary clients and audit the released sum."""
    rng = np.random.default_rng(0)
    canaries = Canaries.draw(COUNT, SIZE, rng)
    updates = canaries.updates(length)
    total = (clip(updates, 1.0) if clipped else updates).sum(axis=0)
    total = total + sigma * rng.standard_normal(SIZE, dtype=np.float32)
    claim = (gaussian_epsilon(1 / claimed_sigma, DELTA), DELTA)
    return AuditResult(canaries.scores(total), canaries.planted, unit=Unit.CLIENT, claimed=claim)


def _gaussian(found: AuditResult) -> float:
    return next(one.value for one in found.epsilons if one.method == "one-run-gaussian")


def test_canaries_without_noise_are_found() -> None:
    found = _audit(0.0, claimed_sigma=2.0)
    assert found.auc.value >= 0.99
    assert found.refuted


def test_an_honest_run_is_not_flagged() -> None:
    """One draw at 5 %, seed fixed."""
    found = _audit(1.0, claimed_sigma=1.0)
    assert not found.refuted
    assert _gaussian(found) <= gaussian_epsilon(1.0, DELTA)


def test_clipping_switched_off_is_flagged() -> None:
    assert not _audit(2.0, claimed_sigma=2.0, clipped=True, length=10.0).refuted
    assert _audit(2.0, claimed_sigma=2.0, clipped=False, length=10.0).refuted


def test_halved_noise_is_flagged_where_the_gaussian_curve_is_known() -> None:
    honest, halved = _audit(1.0, claimed_sigma=1.0), _audit(0.5, claimed_sigma=1.0)
    limit = gaussian_epsilon(1.0, DELTA)
    assert _gaussian(honest) <= limit < _gaussian(halved)


def test_andrew_tells_noise_from_none_and_is_only_an_estimate() -> None:
    rng = np.random.default_rng(0)
    canaries = Canaries.draw(100, SIZE, rng)
    total = canaries.updates(1.0).sum(axis=0)
    loud = total + 5.0 * rng.standard_normal(SIZE, dtype=np.float32)
    quiet = andrew_estimate(canaries.cosines(total)[canaries.planted], SIZE, DELTA)
    noisy = andrew_estimate(canaries.cosines(loud)[canaries.planted], SIZE, DELTA)
    assert quiet.kind is Kind.ESTIMATE
    assert quiet.value > 5 * noisy.value
    with pytest.raises(ConfigError, match="at least 2"):
        Canaries.draw(1, SIZE, rng)


def test_exposure_is_bits_of_rank() -> None:
    assert exposure(5.0, np.arange(15.0)) == pytest.approx(4 - np.log2(11))
    assert exposure(99.0, np.arange(15.0)) == 4.0
    assert exposure(0.0, np.zeros(15)) == 0.0


def test_recall_gap_sees_what_only_the_trained_model_knows() -> None:
    public = np.eye(4, dtype=bool)
    own = np.array([[True, False, False, False], [False, True, False, False]])
    trained, reference = np.eye(4)[:2], np.eye(4)[2:]
    assert recall_gap(trained, reference, public, own, 1).tolist() == [1.0, 1.0]
    assert recall_gap(reference, reference, public, own, 1).tolist() == [0.0, 0.0]


def _gate_gradient(gate: FeatureGate, features: torch.Tensor, text: torch.Tensor):
    embedded = F.normalize(gate(features), dim=-1)
    return torch.autograd.grad(-(embedded * text).sum(), list(gate.outer.parameters()))


def test_a_fresh_feature_gate_gives_the_features_away_to_the_server_and_not_through_the_sum():
    generator = torch.Generator().manual_seed(0)
    gate = FeatureGate(32, generator)
    features = torch.randn(6, 1, 32, generator=generator)
    texts = F.normalize(torch.randn(6, 1, 32, generator=generator), dim=-1)
    pairs = [_gate_gradient(gate, x, t) for x, t in zip(features, texts, strict=True)]
    inner, bias = gate.inner.weight.detach(), gate.inner.bias.detach()
    alone = invert_gate(*pairs[0], inner, bias)
    assert F.cosine_similarity(alone, features[0, 0], dim=0) > 0.99
    weight, offset = (torch.stack(part).mean(0) for part in zip(*pairs, strict=True))
    summed = invert_gate(weight, offset, inner, bias)
    assert F.cosine_similarity(summed, features[0, 0], dim=0) < 0.9


def test_low_rank_update_is_inverted_by_search_at_v1_and_not_at_v2() -> None:
    generator = torch.Generator().manual_seed(1)
    width, rank = 8, 4
    A = (0.5 * torch.randn(width, rank, generator=generator)).requires_grad_()
    B = (0.5 * torch.randn(rank, width, generator=generator)).requires_grad_()
    text = torch.randn(width, generator=generator)
    secrets = torch.randn(5, width, generator=generator)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return 1 - torch.cosine_similarity(x + x @ A @ B, text, dim=0)

    updates = torch.stack([-0.1 * gradient_of(loss(x), [A, B]) for x in secrets])
    start = torch.randn(width, generator=generator)
    found = {}
    for vantage in (Vantage.V1, Vantage.V2):
        seen = observed_gradient(updates, 0, vantage, 0.1)
        out = invert_gradient(seen, [A, B], loss, start, steps=400)
        found[vantage] = float(torch.cosine_similarity(out.inputs, secrets[0], dim=0))
    assert found[Vantage.V1] > 0.95
    assert found[Vantage.V2] < found[Vantage.V1] - 0.1
    with pytest.raises(WrongVantageError, match="V5"):
        observed_gradient(updates, 0, Vantage.V5, 0.1)


def test_a_layer_without_gradient_cannot_be_inverted() -> None:
    with pytest.raises(ConfigError, match="no gradient"):
        invert_linear(torch.zeros(2, 3), torch.zeros(2))
