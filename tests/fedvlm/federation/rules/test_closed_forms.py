"""Each rule against the closed form on small matrices; one contract for all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation.rules import (
    CoordinateRule,
    FedEx,
    FlexLoRA,
    layers_of,
    require_linear,
    rule_of,
    truncated,
)

SHAPES = ((7, 5), (6, 9))  # d, k of two layers


def layout_of(rank=2, shapes=SHAPES):
    out = []
    for place, (d, k) in enumerate(shapes):
        out.append((f"m.{place}.lora_A.default.weight", (rank, k)))
        out.append((f"m.{place}.lora_B.default.weight", (d, rank)))
    return tuple(out)


LAYOUT = layout_of()
SIZE = sum(a * b for _, (a, b) in LAYOUT)


def cohort(seed, count=4, size=SIZE):
    rng = np.random.default_rng(seed)
    adapters = [rng.normal(size=size).astype(np.float32) for _ in range(count)]
    weights = rng.uniform(0.2, 1, size=count)
    return adapters, weights / weights.sum()


def mean_of(vectors, weights):
    return sum(w * v.astype(np.float64) for w, v in zip(weights, vectors, strict=True)).astype(
        np.float32
    )


def play(rule, state, adapters, weights, number=1):
    """Run a round with nothing but means, as a protection gives them."""
    first = mean_of([rule.encode(each, number) for each in adapters], weights)
    if rule.passes == 1:
        return rule.decode(first, state, number)
    basis = rule.basis(first, number)
    second = mean_of([rule.project(each, basis) for each in adapters], weights)
    return rule.finish(first, second, basis, state)


def products(adapters, weights, layer):
    return sum(
        w * layer.factors(each)[0].astype(np.float64) @ layer.factors(each)[1]
        for w, each in zip(weights, adapters, strict=True)
    )


def rules():
    found = [CoordinateRule(LAYOUT, share) for share in ("both", "A", "B", "alternate")]
    found.append(CoordinateRule(LAYOUT, "A", kept=0.3, seed=3))
    return [*found, FlexLoRA(LAYOUT, 4, 0), FedEx(LAYOUT, 4, 0)]


@pytest.mark.parametrize("rule", rules(), ids=lambda r: f"{type(r).__name__}-{vars(r)}"[:60])
class TestContract:
    """What every rule keeps, whatever it computes."""

    def test_a_node_knows_the_state_from_what_came(self, rule):
        (state,), _ = cohort(1, 1)
        state = rule.start(state)
        for number in (1, 2, 3):
            sent = rule.encode(rule.adapter(state), number)
            got = rule.receive(rule.adapter(state), sent, rule.rest(state, number), number)
            assert np.array_equal(got, state)

    def test_clients_that_agree_are_their_own_mean(self, rule):
        (one,), _ = cohort(2, 1)
        state = play(rule, rule.start(one), [one] * 3, np.full(3, 1 / 3))
        adapter = rule.adapter(state)
        for layer in layers_of(LAYOUT):
            b, a = layer.factors(adapter)
            old_b, old_a = layer.factors(one)
            assert np.allclose(b @ a, old_b @ old_a, atol=1e-4)

    def test_only_the_sum_matters(self, rule):
        """Linear: two cohorts whose encodings have one mean give one state."""
        adapters, weights = cohort(3)
        assert rule.linear
        state = rule.start(adapters[0])
        order = [2, 0, 3, 1]
        one = play(rule, state, adapters, weights)
        two = play(rule, state, [adapters[i] for i in order], weights[order])
        assert np.allclose(one, two, atol=1e-4)

    def test_encoding_keeps_its_length(self, rule):
        adapters, _ = cohort(4)
        for number in (1, 2):
            assert len({rule.encode(each, number).shape for each in adapters}) == 1
            assert rule.encode(adapters[0], number).dtype == np.float32

    def test_nothing_is_changed_in_place(self, rule):
        adapters, weights = cohort(5)
        before = [each.copy() for each in adapters]
        state = rule.start(adapters[0])
        kept = state.copy()
        play(rule, state, adapters, weights)
        assert all(np.array_equal(a, b) for a, b in zip(adapters, before, strict=True))
        assert np.array_equal(state, kept)


@pytest.mark.parametrize("share", ["A", "B"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_personal_factor_is_in_nothing_that_is_sent(share, seed):
    """Change the personal factor as you like: the encoding is the same to the bit."""
    rule = CoordinateRule(LAYOUT, share)
    (one, other), _ = cohort(seed, 2)
    other[rule.common] = one[rule.common]
    assert np.array_equal(rule.encode(one, 1), rule.encode(other, 1))
    assert rule.encode(one, 1).size + (~rule.common).sum() == SIZE
    back = rule.receive(other, rule.encode(one, 1), rule.rest(one, 1), 1)
    assert np.array_equal(back, other)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_alternating_rounds_are_exact(seed):
    """RoLoRA: with A frozen Σ w B·A = (Σ w B)·A, and in the next round the other way round."""
    rule = CoordinateRule(LAYOUT, "alternate")
    (state, *adapters), _ = cohort(seed, 5)
    weights = np.full(4, 0.25)
    for number in (1, 2):
        trained = [np.where(rule.trained(number), each, state) for each in adapters]
        after = play(rule, state, trained, weights, number)
        for layer in layers_of(LAYOUT):
            b, a = layer.factors(after)
            assert np.allclose(b @ a, products(trained, weights, layer), atol=1e-5)
        state = after


def test_plain_averaging_is_not_exact():
    """FedIT: B̄·Ā differs from Σ w B·A as soon as both factors moved."""
    adapters, weights = cohort(0)
    after = play(CoordinateRule(LAYOUT), adapters[0], adapters, weights)
    layer = layers_of(LAYOUT)[0]
    b, a = layer.factors(after)
    exact = products(adapters, weights, layer)
    assert np.linalg.norm(b @ a - exact) > 0.1 * np.linalg.norm(exact)


@given(seed=st.integers(0, 10_000), clients=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_flexlora_is_the_truncated_product(seed, clients):
    """With a sketch as wide as the rank of the sum: SVD_r(Σ w B·A), from sums alone."""
    rule = FlexLoRA(LAYOUT, 2 * clients, seed)
    adapters, weights = cohort(seed, clients)
    after = play(rule, adapters[0], adapters, weights)
    for layer in layers_of(LAYOUT):
        b, a = layer.factors(after)
        u, s, v = np.linalg.svd(products(adapters, weights, layer), full_matrices=False)
        assert np.allclose(b @ a, (u[:, :2] * s[:2]) @ v[:2], atol=2e-4 * max(1.0, s[0]))


def test_flexlora_with_a_narrow_sketch_is_near_the_best():
    """20 clients that drifted apart by a fifth: 2r is within a third of the best, 6r within 5 %."""
    layout = layout_of(4, ((64, 48),))
    (layer,) = layers_of(layout)
    rng = np.random.default_rng(0)
    size = 4 * (64 + 48)
    centre = rng.normal(size=size)
    adapters = [(centre + 0.2 * rng.normal(size=size)).astype(np.float32) for _ in range(20)]
    weights = np.full(20, 0.05)
    exact = products(adapters, weights, layer)
    s = np.linalg.svd(exact, compute_uv=False)
    best = np.sqrt((s[4:] ** 2).sum())
    for width, most in ((8, 1.34), (24, 1.05)):
        after = play(FlexLoRA(layout, width, 0), adapters[0], adapters, weights)
        b, a = layer.factors(after)
        assert best <= np.linalg.norm(exact - b @ a) + 1e-4 <= most * best


def test_a_site_gets_the_best_of_its_rank():
    rule = FlexLoRA(LAYOUT, 8, 0, ranks=(1, 2))
    adapters, weights = cohort(7)
    after = play(rule, adapters[0], adapters, weights)
    cut = rule.for_site(after, 0)
    for layer in layers_of(LAYOUT):
        b, a = layer.factors(cut)
        assert not b[:, 1:].any()
        assert not a[1:].any()
        u, s, v = np.linalg.svd(products(adapters, weights, layer), full_matrices=False)
        assert np.allclose(b @ a, s[0] * np.outer(u[:, 0], v[0]), atol=1e-4 * s[0])
    assert np.array_equal(rule.for_site(after, 1), after)


def test_flexlora_refuses_two_scales():
    with pytest.raises(ConfigError, match="one scale for all ranks"):
        FlexLoRA(LAYOUT, 4, 0, ranks=(1, 2), scales=(2.0, 1.0))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_fedex_is_the_exact_sum(seed):
    """B̄·Ā + U·V = Σ w B·A after one round; after two the corrections add up."""
    rule = FedEx(LAYOUT, 9, seed)  # as wide as the layers: any rank has room
    total = [0.0, 0.0]
    state = rule.start(np.zeros(SIZE, dtype=np.float32))
    for number in (1, 2):
        adapters, weights = cohort(seed + number)
        state = play(rule, state, adapters, weights, number)
        adapter = rule.adapter(state)
        assert np.allclose(adapter, mean_of(adapters, weights), atol=1e-6)
        for place, layer in enumerate(layers_of(LAYOUT)):
            b, a = layer.factors(adapter)
            u, v = rule.corrections(state)[place]
            exact = products(adapters, weights, layer)
            assert np.allclose(u @ v + b @ a, total[place] + exact, atol=1e-3)
            total[place] = u @ v


def test_truncating_zeros_leaves_a_basis():
    b, a = truncated(np.zeros((7, 3)), np.zeros((3, 5)), 4)
    assert b.shape == (7, 4)
    assert a.shape == (4, 5)
    assert not b.any()
    assert np.isfinite(a).all()


@given(kept=st.floats(0.01, 1), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_a_mask_commutes_with_the_mean(kept, seed):
    """What is kept is the mean to the bit; what isn't stays as it was; rounds differ."""
    rule = CoordinateRule(LAYOUT, "both", kept, seed)
    (state, *adapters), _ = cohort(seed, 4)
    weights = np.full(3, 1 / 3)
    after = play(rule, state, adapters, weights)
    chosen = rule.sent(1)
    assert chosen.sum() == max(1, round(kept * SIZE))
    assert np.array_equal(after[~chosen], state[~chosen])
    assert np.array_equal(after[chosen], mean_of(adapters, weights)[chosen])
    if 0.1 < kept < 0.9:
        assert not np.array_equal(rule.sent(1), rule.sent(2))


def test_a_rule_that_needs_single_updates_starts_under_no_protection():
    rule = CoordinateRule(LAYOUT, linear=False)
    require_linear(rule, "plain")
    for protect in ("secagg", "secagg-active", "he"):
        with pytest.raises(ConfigError, match="needs each client's update"):
            require_linear(rule, protect)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"share": "A", "adapter": "ffa-lora"}, "needs both factors"),
        ({"rule": "fedex", "adapter": "prompt"}, "needs both factors"),
        ({"rule": "flexlora", "share": "B"}, "no half"),
        ({"rule": "flexlora", "compression": "mask"}, "no half"),
        ({"site_ranks": "4,4", "clients": 2}, "no average"),
        ({"rule": "flexlora", "site_ranks": "4,99", "clients": 2}, "from 1 to rank"),
        ({"rule": "flexlora", "site_ranks": "4", "clients": 2}, "for each of the 2 clients"),
        ({"rule": "flexlora", "site_ranks": "a,b", "clients": 2}, "whole number"),
        ({"rule": "flexlora", "dp": "client"}, "two sums a round"),
        ({"rule": "fedex", "protect": "he"}, "two sums a round"),
        ({"share": "alternate", "server_optimizer": "fedadam"}, "keeps moments"),
        ({"compression": "mask", "server_optimizer": "fedavgm"}, "keeps moments"),
        ({"share": "alternate", "dp": "example"}, "ffa-lora"),
        ({"share": "A", "dp": "distributed", "protect": "secagg"}, "whole adapters"),
        ({"share": "B", "canaries": 8}, "audit needs"),
        ({"compression": "mask", "transcript": True}, "audit needs"),
        ({"compression": "rounding"}, "needs protect"),
        ({"share": "C"}, "share must be one of"),
        ({"kept": 0.0}, "kept must be above 0"),
        ({"kept": float("nan")}, "kept must be"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings_, message):
    with pytest.raises(ConfigError, match=message):
        config_from(settings_)


def test_a_configuration_gives_its_rule():
    assert isinstance(rule_of(config_from({"rule": "flexlora"}), LAYOUT), FlexLoRA)
    assert rule_of(config_from({"rule": "fedex", "rank": 3}), LAYOUT).width == 6
    rule = rule_of(config_from({"share": "B", "compression": "mask", "kept": 0.5}), LAYOUT)
    assert (rule.share, rule.kept) == ("B", 0.5)
    with pytest.raises(ConfigError, match="no LoRA factor"):
        rule_of(config_from({"rule": "fedex"}), (("prompt.context", (4, 8)),))
