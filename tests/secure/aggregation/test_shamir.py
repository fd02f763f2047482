"""Shamir's secret sharing: an independent oracle, and what shares may not say."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from secure.aggregation._shamir import PRIME, combine, random_secret, split
from secure.errors import IntegrityError, ParameterError
from secure.random import SecureRandom

RNG = SecureRandom()


@given(st.data())
def test_any_threshold_of_the_shares_gives_the_secret(data):
    points = data.draw(st.lists(st.integers(1, 5000), min_size=1, max_size=12, unique=True))
    threshold = data.draw(st.integers(1, len(points)))
    secret = random_secret(RNG)
    shares = split(secret, threshold, points, RNG)
    chosen = data.draw(st.permutations(points))[:threshold]
    assert combine({point: shares[point] for point in chosen}, threshold) == secret


def test_the_shares_lie_on_one_polynomial():
    """Oracle: interpolation in exact rationals, with no arithmetic modulo the prime in between."""
    secret = random_secret(RNG)
    shares = split(secret, 3, [1, 2, 5], RNG)
    total = Fraction(0)
    for mine in shares:
        weight = Fraction(1)
        for other in shares:
            if other != mine:
                weight *= Fraction(other, other - mine)
        total += weight * int.from_bytes(shares[mine], "little")
    value = total.numerator * pow(total.denominator, -1, PRIME) % PRIME
    assert value == int.from_bytes(secret, "little")


def test_below_the_threshold_the_shares_look_the_same_for_any_secret():
    # A share's low byte is uniform whatever the secret; false-alarm rate 2e-6.
    for secret in (bytes(32), b"\x07" + bytes(31)):
        low = [split(secret, 2, [1, 2], RNG)[1][0] for _ in range(5000)]
        counts = [low.count(value) for value in range(256)]
        assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize(
    ("threshold", "points"), [(0, [1, 2]), (3, [1, 2]), (2, [1, 1]), (2, [0, 1]), (1, [PRIME])]
)
def test_bad_parameters_are_refused(threshold, points):
    with pytest.raises(ParameterError):
        split(random_secret(RNG), threshold, points, RNG)


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(33), PRIME.to_bytes(32, "little")])
def test_what_is_no_field_element_is_refused(bad):
    with pytest.raises(IntegrityError, match="field element"):
        split(bad, 1, [1], RNG)
    with pytest.raises(IntegrityError, match="field element"):
        combine({1: bad}, 1)
