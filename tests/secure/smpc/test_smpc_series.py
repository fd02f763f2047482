"""The fitted series and the tables: errors over the whole declared range, in the clear."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.errors import ParameterError
from secure.smpc import _series, _tables
from secure.smpc._builder import norm_parameters


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "quick_gelu", "tanh"])
@pytest.mark.parametrize("radius", [1.0, 3.5, 6.0, 12.0])
def test_a_series_keeps_its_tolerance(name, radius):
    series = _series.fit(name, radius, 3e-4)
    x = np.random.default_rng(0).uniform(-radius, radius, 20_000)
    x = np.concatenate([x, [-radius, radius]])
    error = np.abs(series.evaluate(x) - _series.FUNCTIONS[name][0](x)).max()
    assert error <= series.max_error <= 3e-4
    assert 2**series.period_bits > 2 * radius


@pytest.mark.parametrize("radius", [0.25, 1.5, 3.0])
def test_the_series_of_exp_is_relative_above_one(radius):
    series = _series.fit("exp", radius, 2e-5)
    x = np.linspace(-radius, radius, 30_001)
    error = np.abs(series.evaluate(x) - np.exp(x)) / np.maximum(1, np.exp(x))
    assert error.max() <= series.max_error <= 2e-5


def test_gelu_on_six_needs_eight_harmonics():
    # The published rivals' largest errors on [-10, 10] are 4.5e-3 to 2.0e-2.
    series = _series.fit("gelu", 6.0, 4e-4)
    assert (series.harmonics, series.period_bits) == (8, 4)


def test_outside_its_radius_a_series_is_bounded():
    series = _series.fit("gelu", 6.0, 3e-4)
    x = np.linspace(-1000, 1000, 100_001)
    assert np.abs(series.evaluate(x) - series.slope * x).max() < sum(map(abs, series.cosines))


@pytest.mark.parametrize(("name", "radius"), [("relu", 1.0), ("gelu", 0.0), ("gelu", 65.0)])
def test_unknown_series_are_refused(name, radius):
    with pytest.raises(ParameterError):
        _series.fit(name, radius, 1e-3)


@settings(deadline=None, max_examples=40)
@given(st.floats(-6, 14), st.floats(0.0, 5.0), st.sampled_from([0.0, 1e-12, 1e-5]))
def test_the_inverse_root_is_right_over_its_table(log_top, spread, epsilon):
    width = 64
    highest = 2.0**log_top
    sums = torch.tensor([highest, highest / 2**spread], dtype=torch.float64)
    p = norm_parameters("layer", width, True, sums.view(2, 1), float(width), epsilon)
    table = p.table
    v = np.geomspace(2 * table.floor, 2.0**table.top_bits * (1 - 2.0**-table.index_bits), 4001)
    t0, t1, t2 = _tables.quadratics(table).numpy().astype(np.float64)
    # The truncated index may be the node below or the one above.
    for up in (0, 1):
        index = np.minimum(np.floor(v / table.step).astype(int) + up, len(t0) - 1)
        low = np.rint((v / table.step - index) * 2**_tables.LOW_BITS)
        value = (t0[index] + t1[index] * low + t2[index] * low**2) * 2.0 ** (
            table.scale_bits - _tables.VALUE_BITS
        )
        error = np.abs(value * np.sqrt(v / width + epsilon) - 1)
        assert error.max() < 4e-4


def test_circle_is_a_circle():
    residue = torch.arange(0, 1 << 24, 997)
    cos, sin = _tables.rotate(residue, 24)
    angle = residue.double() * (2 * math.pi / 2**24)
    assert float((cos - angle.cos()).abs().max()) < 1e-11
    assert float((sin - angle.sin()).abs().max()) < 1e-11
