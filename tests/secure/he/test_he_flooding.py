"""H1: what a guarded result tells beyond y, read as an attacker reads it, down to the last bit."""

import math

import numpy as np
import pytest
from scipy import stats

from secure.errors import ParameterError, PolicyError
from secure.he import GuardedLinear, HEParams
from secure.he import guarded as guarded_module
from secure.he._exact import encode_periodic
from secure.he._flood import SHIFT, TERMS, flood
from secure.he._seal import engine
from secure.he.chain_plan import periodic_split
from tests.secure.fixed_random import FixedRandom

from .he_coefficients import from_ntt, polynomial, slots
from .he_tools import client, unit_rows

PARAMS = HEParams(16384, (60, 60, 60, 60), 90)


def input_noise(owner, sent, keys, sizes: tuple[int, int]) -> np.ndarray:
    """Return the slots that each input meets a weight with, `(n, slots)`: the client knows them.

    Diagonal k = big * baby + small is met by the input turned by `small`, turned on by the rest; a
    wide input's parts are added up by rotations of the sum.
    """
    n, m = sizes
    seal = engine(PARAMS)
    baby, giant = periodic_split(n, m)
    source = sent.load()[0]
    turned = [source] + [seal.rotate(source, step, keys.galois) for step in range(1, baby)]
    known = [slots(polynomial(owner, each)) for each in turned]
    rows = []
    for fold in range(max(n // m, 1)):
        for big in range(giant):
            rows += [np.roll(each, -big * baby - fold * m) for each in known]
    return np.array(rows)


def solve(low: np.ndarray, noise: np.ndarray, m: int, weight_scale: float) -> np.ndarray:
    """Solve for the weights, given the slots of what should be flooded and is not: `(2m, n)`."""
    n = len(noise)
    found = np.empty((2 * m, n))
    for row in range(m):
        here = np.arange(row, PARAMS.slots, m)
        # Slot s of diagonal k holds W[row, s + k].
        met = np.empty((len(here), n), dtype=np.complex128)
        for k in range(n):
            met[np.arange(len(here)), (here + k) % n] = noise[k, here]
        solved = np.linalg.lstsq(met, low[here] / weight_scale, rcond=None)[0]
        found[row], found[row + m] = solved.real, solved.imag
    return found


def least_squares(layer: GuardedLinear, owner, result, noise: np.ndarray) -> float:
    """Attack one answer at x = 0, whichever low bits are left bare; return the smallest error."""
    level = result.level
    whole = polynomial(owner, result.load()[0], level)
    m = layer.plan.sizes[1]
    best = math.inf
    for bits in range(20, 140, 3):
        low = whole % (1 << bits)
        low = np.where(low > 1 << (bits - 1), low - (1 << bits), low)
        guess = solve(slots(low), noise, m, result.scale / 2.0**PARAMS.scale_bits)
        best = min(best, float(np.abs(guess - layer_weight(layer)).max()))
    return best


WEIGHTS: dict[int, np.ndarray] = {}


def layer_weight(layer: GuardedLinear) -> np.ndarray:
    weight = WEIGHTS[id(layer)]
    padded = np.zeros((2 * layer.plan.sizes[1], weight.shape[1]))
    padded[: len(weight)] = weight
    return padded


@pytest.fixture(scope="module")
def asked():
    """A layer of 8 by 8, its client, and one answer at x = 0."""
    weight = np.random.default_rng(0).standard_normal((8, 8))
    layer = GuardedLinear(weight, params=PARAMS, max_queries=7, max_error=1.0)
    WEIGHTS[id(layer)] = weight
    owner = client(PARAMS)
    keys = owner.evaluation_keys(layer.plan, public=True)
    sent = owner.encrypt(np.zeros(8), layer.plan)
    return layer, owner, keys, sent, input_noise(owner, sent, keys, layer.plan.sizes)


def test_h1_one_query_at_zero_does_not_reveal_the_weights(asked):
    layer, owner, keys, sent, noise = asked
    # Guessing nothing at all, all zeros, is off by the largest weight.
    blind = np.abs(layer_weight(layer)).max()
    assert least_squares(layer, owner, layer(sent, keys), noise) > blind / 2


def test_h1_the_attack_works_where_the_low_bits_are_bare(asked, monkeypatch):
    """Flooding of floats' 53 bits, as once was, is what the attack feeds on."""
    layer, owner, keys, sent, noise = asked

    def coarse(random, count, width):
        drop = width.bit_length() - 42
        return flood(random, count, width >> drop) * (1 << drop)

    monkeypatch.setattr(guarded_module, "flood", coarse)
    monkeypatch.setattr(layer, "queries", 0)
    assert least_squares(layer, owner, layer(sent, keys), noise) < 1e-6


def test_h1_every_low_bit_of_a_result_is_a_coin(asked):
    """Chi-square over 16 bits at a time, from the last to below sigma; false alarms 1e-6 each."""
    layer, owner, keys, sent, _ = asked
    whole = polynomial(owner, layer(sent, keys).load()[0])
    for start in range(0, layer._flooding.bit_length() - 20, 12):
        digit = ((whole >> start) & 0xF).astype(np.int64)
        assert stats.chisquare(np.bincount(digit, minlength=16)).pvalue > 1e-6


def test_t1_the_second_polynomial_is_fresh_in_every_answer(asked):
    """Bare it is a public function of W: the same input twice would show it twice."""
    layer, _, keys, sent, _ = asked
    layer.queries = 0
    seal = engine(PARAMS)
    seconds = []
    for _ in range(2):
        result = layer(sent, keys).load()[0]
        seconds.append(seal.residues(result, seal.level_of(result))[1])
    assert (seconds[0] != seconds[1]).mean() > 0.99


def test_t1_results_are_counted_and_the_one_too_many_is_refused(asked):
    layer, _, keys, sent, _ = asked
    layer.queries = layer.max_queries - 1
    layer(sent, keys)
    assert layer.queries == layer.max_queries
    with pytest.raises(PolicyError, match="7 results were given"):
        layer(sent, keys)
    layer.queries = 0


@pytest.mark.parametrize("bits", [1, 40, 64])
def test_t1_the_width_is_two_to_the_bits_times_what_is_hidden(asked, bits, monkeypatch):
    """Where there is next to nothing to hide, what is left of the width is the claim alone."""
    layer, *_ = asked
    monkeypatch.setattr(guarded_module, "SHIFT", 1e-300)
    assert layer._width(1.0, 20, bits) == 2**bits


def test_h1_two_matrices_of_equal_y_are_not_told_apart(asked):
    """The attacker knows both matrices and the query's noise, and asks which one was used.

    At x = 0 both give y = 0. The best test of a shift is linear, along the difference of what
    they would leave; in 16 answers it is within 5 deviations of zero (alarm rate 6e-7).
    """
    layer, owner, keys, sent, _ = asked
    other = GuardedLinear(
        np.random.default_rng(1).standard_normal((8, 8)),
        params=PARAMS,
        max_queries=7,
        max_error=1.0,
    )
    seal = engine(PARAMS)
    source = sent.load()[0]
    bare = []
    for each in (layer, other):
        result = each._layer.apply(source, keys)
        bare.append((result.scale, polynomial(owner, result)))
    if bare[0][0] != bare[1][0]:
        pytest.skip("their scales differ, which the layer says they may")
    gap = bare[0][1] - bare[1][1]
    norm = math.sqrt(sum(int(each) ** 2 for each in gap))
    assert norm > 2.0**45
    # The claim: far below 2^-40 of what hides it.
    assert SHIFT * norm / layer._flooding <= 2.0**-40
    draws = []
    for index in range(16):
        used = (layer, other)[index % 2]
        flooded = used._flooded(seal.load_ciphertext(*_parts(seal, used, source, keys)))
        whole = polynomial(owner, flooded)
        along = float(sum(int(a) * int(b) for a, b in zip(whole - bare[1][1], gap, strict=True)))
        draws.append(along / norm / (layer._flooding / math.sqrt(3)))
    draws = np.array(draws)
    spread = np.sqrt(2 / 8)
    assert abs(draws[::2].mean() - draws[1::2].mean()) < 5 * spread
    assert abs(draws.std() - 1) < 0.9


def _parts(seal, layer, source, keys):
    result = layer._layer.apply(source, keys)
    level = seal.level_of(result)
    return seal.residues(result, level), b"", level, result.scale


@pytest.mark.parametrize("width", [256, 1 << 20, (1 << 70) + 12345, (1 << 113) + 7])
def test_the_flooding_has_its_width_and_no_grain(width):
    draws = flood(FixedRandom(3), 20_000, width)
    assert all(type(each) is int for each in draws[:10])
    assert max(map(abs, draws)) <= 2.01 * width
    share = draws.astype(np.float64) / width
    # 20,000 draws: mean and deviation within 6 deviations of theirs (alarm rate 2e-9).
    assert abs(share.mean()) < 6 * math.sqrt(TERMS / 12 / 20_000)
    assert abs(share.std() / math.sqrt(TERMS / 12) - 1) < 6 * math.sqrt(0.5 / 20_000)
    for wrong in (2 / 3, 3 / 2):
        assert abs(share.std() / math.sqrt(TERMS / 12) / wrong - 1) > 0.2
    for start in range(0, max(width.bit_length() - 12, 0), 6):
        digit = ((draws >> start) & 0x3F).astype(np.int64)
        assert stats.chisquare(np.bincount(digit, minlength=64)).pvalue > 1e-6


class Largest:
    """A source whose every draw is the largest that it may be."""

    def below(self, bound, count):
        return np.full(count, bound - 1)


@pytest.mark.parametrize("width", [256, (1 << 17) + 1, (1 << 70) + 12345, (1 << 113) + 7])
def test_t1_the_flooding_is_never_narrower_than_asked(width):
    """Rounding R to what can be drawn goes up: a bound in R holds."""
    assert 2 * (width - 1) <= flood(Largest(), 1, width)[0] <= 2 * width * (1 + 2.0**-16)


@pytest.mark.parametrize("width", [256, 1000, 4096])
def test_a_shift_of_the_flooding_shows_no_more_than_stated(width):
    """The law of the sum of four, exactly: its total variation against its shifts, and SHIFT."""
    law = np.ones(1)
    for _ in range(TERMS):
        law = np.convolve(law, np.ones(width) / width)
    root = np.sqrt(np.concatenate([[0], law, [0]]))
    assert math.sqrt(np.sum(np.diff(root) ** 2)) <= SHIFT / width
    for shift in {1, 2, max(width // 8, 1), width}:
        wide = np.concatenate([law, np.zeros(shift)])
        moved = np.concatenate([np.zeros(shift), law])
        assert np.abs(wide - moved).sum() / 2 <= SHIFT * shift / width


def test_a_flooding_too_narrow_for_its_bound_is_refused():
    with pytest.raises(ParameterError, match="256"):
        flood(FixedRandom(1), 4, 255)


@pytest.mark.parametrize("period", [1, 2, 8, 512])
def test_a_periodic_plaintext_has_no_coefficient_beside_its_period(period):
    """What float64 would leave there at 2^90 is 2^37, and would carry W into unread slots."""
    rng = np.random.default_rng(period)
    values = rng.standard_normal(period) + 1j * rng.standard_normal(period)
    seal = engine(PARAMS)
    for scale, dither in ((2.0**90, None), (2.0**40, FixedRandom(1))):
        plain = encode_periodic(PARAMS, values, scale, 0, dither)
        integers = from_ntt(seal, seal.plain_residues(plain, 0))
        stride = PARAMS.poly_modulus_degree // (2 * max(period, 2))
        beside = np.ones(len(integers), dtype=bool)
        beside[::stride] = False
        assert not integers[beside].any()
        got = np.array(seal.encoder.decode_complex(plain)).reshape(-1, period)
        assert np.abs(got - values).max() < max(2.0**-44, 40 * math.sqrt(2 * period) / scale)


def test_sharp_inputs_and_wide_layers_stay_exact():
    rng = np.random.default_rng(5)
    weight, bias = unit_rows(rng, 300, 200), rng.standard_normal(300)
    layer = GuardedLinear(weight, bias, params=PARAMS, max_queries=9)
    owner = client(PARAMS)
    keys = owner.evaluation_keys(layer.plan, public=True)
    for values in (unit_rows(rng, 1, 200)[0], np.eye(200)[7], np.full(200, 1e-9)):
        got = owner.decrypt(layer(owner.encrypt(values, layer.plan), keys))[0]
        assert np.abs(got - weight @ values - bias).max() <= layer.error < 1e-4


def test_a_guarded_layer_of_zeros_answers_with_its_bias():
    layer = GuardedLinear(np.zeros((3, 4)), np.arange(3.0) / 3, params=PARAMS, max_queries=2)
    owner = client(PARAMS)
    keys = owner.evaluation_keys(layer.plan, public=True)
    got = owner.decrypt(layer(owner.encrypt(np.full(4, 0.4), layer.plan), keys))[0]
    assert np.abs(got - np.arange(3.0) / 3).max() <= layer.error


def test_what_the_flooding_tells_of_the_weights_is_a_factor_of_two():
    """Scale and flooding are public: they follow from the two magnitudes alone."""
    rng = np.random.default_rng(11)
    seen: dict[tuple[float, float], set[tuple[float, int, float]]] = {}
    for _ in range(12):
        rows = unit_rows(rng, 4, 8) * rng.uniform(0.5, 2.0)
        layer = GuardedLinear(rows, params=PARAMS, max_queries=2)
        norms = np.linalg.norm(rows, axis=1)
        largest = guarded_module.pair_bound(norms, layer.plan.sizes[1])
        magnitudes = (guarded_module._up(largest), guarded_module._up(largest * PARAMS.max_abs))
        told = (layer.sigma, layer._flooding, layer.error)
        seen.setdefault(magnitudes, set()).add(told)
    assert 2 <= len(seen) <= 4
    assert all(len(told) == 1 for told in seen.values())
