"""Parameters: the 128-bit table, the choice, the prediction of the error."""

import math

import pytest

from secure.errors import ParameterError
from secure.he import HEParams, InsecureParametersError, WireError
from secure.he.params import MAX_MODULUS_BITS


def test_the_table_is_the_one_of_eprint_2024_463():
    # Ternary secret, classical, 128 bits: "Security Guidelines for Implementing Homomorphic
    # Encryption", ePrint 2024/463; same values in the tables that its authors' script prints.
    expected = {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430, 32768: 868}
    assert expected == MAX_MODULUS_BITS


@pytest.mark.parametrize("degree", [2048, 4096, 8192])
def test_one_bit_above_the_table_is_refused(degree):
    limit = MAX_MODULUS_BITS[degree]
    count = math.ceil((limit + 1) / 60)
    bits = [(limit + 1) // count] * count
    bits[0] += limit + 1 - sum(bits)
    with pytest.raises(InsecureParametersError, match="special prime counted"):
        HEParams(degree, tuple(bits), 20)
    bits[0] -= 1
    assert HEParams(degree, tuple(bits), 20).poly_modulus_degree == degree


def test_parameters_that_seal_takes_and_the_tighter_table_does_not():
    import tenseal as ts

    context = ts.context(ts.SCHEME_TYPE.CKKS, 4096, coeff_mod_bit_sizes=[54, 55])
    assert context is not None  # SEAL's table of 2018 admits 109 bits
    with pytest.raises(InsecureParametersError):
        HEParams(4096, (54, 55), 27)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"poly_modulus_degree": 4000}, "poly_modulus_degree"),
        ({"poly_modulus_degree": 512}, "poly_modulus_degree"),
        ({"coeff_bits": ()}, "primes"),
        ({"coeff_bits": (61, 20)}, "20 to 60"),
        ({"coeff_bits": (19, 20)}, "20 to 60"),
        ({"scale_bits": 50}, "scale_bits"),
        ({"scale_bits": 2}, "scale_bits"),
        ({"max_abs": math.inf}, "max_abs"),
        ({"max_abs": math.nan}, "max_abs"),
        ({"max_abs": 0.0}, "max_abs"),
    ],
)
def test_values_out_of_range_are_refused(changes, match):
    base = {"poly_modulus_degree": 4096, "coeff_bits": (51, 55), "scale_bits": 28}
    with pytest.raises(ParameterError, match=match):
        HEParams(**{**base, **changes})


def test_select_takes_the_cheapest_that_reaches_the_error():
    assert HEParams.select(0, 1.0, 3e-4).coeff_bits == (50, 56)
    assert HEParams.select(0, 1.0, 1e-6).coeff_bits == (60, 40, 60)
    assert HEParams.select(0, 1.0, 1e-4, batch=2048).poly_modulus_degree == 2048
    assert HEParams.select(1, 1.0, 1e-3).depth == 1
    assert HEParams.select(2, 1.0, 1e-3).coeff_bits == (60, 40, 40, 60)


@pytest.mark.parametrize(
    ("depth", "max_abs", "error"),
    [(0, 1.0, 1e-40), (3, 1.0, 1.0), (-1, 1.0, 1.0), (0, 1.0, 0.0), (0, 1.0, math.nan)],
)
def test_select_says_when_nothing_does(depth, max_abs, error):
    with pytest.raises(ParameterError):
        HEParams.select(depth, max_abs, error)


def test_select_explains_itself_in_one_line():
    line = HEParams.select(2, 1.0, 1e-3).explain()
    assert "\n" not in line
    for part in ("N=8192", "depth 2", "200 of at most 214", "ePrint 2024/463"):
        assert part in line


def test_a_larger_range_costs_precision():
    errors = [HEParams.select(0, size, 1.0).predicted_error() for size in (1.0, 8.0, 64.0)]
    assert HEParams.select(0, 64.0, 1.0).coeff_bits == (50, 56)
    assert errors[1] == pytest.approx(8 * errors[0])
    assert errors[2] == pytest.approx(64 * errors[0])


def test_bytes_round_trip_and_identity():
    params = HEParams.select(2, 3.0, 1e-2)
    again = HEParams.from_bytes(params.to_bytes())
    assert again == params
    assert again.identity == params.identity
    assert HEParams(4096, (51, 55), 28).identity != HEParams(4096, (51, 55), 27).identity


def test_insecure_parameters_on_the_wire_are_refused():
    honest = HEParams(4096, (51, 55), 28).to_bytes()
    with pytest.raises(InsecureParametersError):
        HEParams.from_bytes(honest[:-1] + bytes([60]))
    for data in (b"", honest[:-1], honest + b"\x14", b"\0" * len(honest)):
        with pytest.raises(WireError):
            HEParams.from_bytes(data)
