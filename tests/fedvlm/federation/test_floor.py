"""A node's floor is its own: what the run config says can only ask for more (S1, S4)."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation.floor import PRIVACIES, PROTECTIONS, REFUSALS, Floor, RefusedError, Terms

SECAGG = {"dp": "distributed", "protect": "secagg-active", "epsilon": 2.0, "delta": 1e-5}


def _terms(**settings):
    return Terms.of(config_from(settings))


@pytest.mark.parametrize(
    ("floor", "asked", "code"),
    [
        ({"protect": "secagg"}, {}, "protection"),
        ({"protect": "secagg"}, {"protect": "he"}, "protection"),
        ({"protect": "secagg-active"}, {"protect": "secagg"}, "protection"),
        ({"dp": ("distributed",)}, {"protect": "secagg"}, "noise"),
        ({"dp": ("distributed",)}, {"dp": "client"}, "noise"),
        ({"epsilon": 1.0}, SECAGG, "noise"),
        ({"epsilon": 1.0}, {}, "noise"),
        ({"epsilon": 100.0}, {"dp": "client"}, "noise"),
        ({"delta": 1e-6}, SECAGG, "noise"),
        ({"rounds": 5}, {"rounds": 6}, "rounds"),
        ({"adapters": ("ffa-lora",)}, {}, "adapter"),
        ({"targets": (r".*q_proj",)}, {}, "adapter"),
        ({"min_clients": 6}, {"clients": 10, "fraction": 0.5}, "cohort"),
    ],
)
def test_less_than_the_floor_is_refused_with_its_code(floor, asked, code):
    with pytest.raises(RefusedError) as stop:
        Floor(**floor).check(_terms(**asked))
    assert stop.value.code == code
    assert code in REFUSALS
    assert not Floor(**floor).allows(_terms(**asked))


@pytest.mark.parametrize(
    ("floor", "asked"),
    [
        ({}, {}),
        ({"protect": "he"}, {"protect": "secagg"}),
        ({"protect": "secagg"}, {"protect": "secagg-active"}),
        ({"epsilon": 2.0, "delta": 1e-5}, SECAGG),
        ({"dp": ("none", "client"), "min_clients": 10, "rounds": 6}, {"dp": "client"}),
        ({"targets": (r".*q_proj",)}, {"targets": r".*q_proj"}),
        ({"targets": (r".*q_proj",)}, {"adapter": "prompt"}),
    ],
)
def test_what_meets_the_floor_passes(floor, asked):
    Floor(**floor).check(_terms(**asked))


@given(
    st.sampled_from(PROTECTIONS),
    st.sampled_from(PROTECTIONS),
    st.sampled_from(PRIVACIES),
    st.floats(0.1, 20),
    st.floats(0.1, 20),
)
def test_asking_for_more_never_loses_a_run_that_was_allowed(least, asked, dp, cap, epsilon):
    """The floor is monotone: raising protection or lowering ε never turns yes into no."""
    floor = Floor(protect=least, epsilon=cap)
    terms = dataclasses.replace(_terms(), protect=asked, dp=dp, epsilon=epsilon, delta=1e-6)
    if floor.allows(terms):
        stronger = PROTECTIONS[PROTECTIONS.index(asked) :]
        assert all(floor.allows(dataclasses.replace(terms, protect=each)) for each in stronger)
        assert floor.allows(dataclasses.replace(terms, epsilon=epsilon / 2))
        assert epsilon <= cap
        assert dp in ("example", "shared", "distributed")


def test_a_nan_meets_no_floor():
    terms = dataclasses.replace(_terms(**SECAGG), epsilon=math.nan)
    assert not Floor(epsilon=5.0).allows(terms)
    assert not Floor().allows(dataclasses.replace(_terms(**SECAGG), delta=math.nan))
    assert not Floor().allows(dataclasses.replace(_terms(), protect="none"))


@pytest.mark.parametrize(
    ("floor", "message"),
    [
        ({"protect": "secag"}, "floor.protect takes plain, he, secagg"),
        ({"dp": ("some",)}, "floor.dp takes"),
        ({"adapters": ()}, "floor.adapters takes .* got none"),
        ({"epsilon": 0.0}, "floor.epsilon must be above 0"),
        ({"epsilon": math.nan}, "floor.epsilon"),
        ({"delta": 0.0}, "floor.delta"),
        ({"epsilon": 1.0, "dp": ("none",)}, "no floor.epsilon can hold"),
        ({"rounds": -1}, "floor.rounds must be at least 0"),
        ({"min_clients": 0}, "floor.min_clients must be at least 1"),
    ],
)
def test_a_floor_that_makes_no_sense_is_refused(floor, message):
    with pytest.raises(ConfigError, match=message):
        Floor(**floor)


def test_the_base_model_is_the_one_that_the_owner_names():
    Floor().check_model("0" * 64)
    Floor(model="0" * 64).check_model("0" * 64)
    with pytest.raises(RefusedError, match="hash to 111111111111") as stop:
        Floor(model="0" * 64).check_model("1" * 64)
    assert stop.value.code == "model"


def test_terms_of_the_default_run():
    terms = Terms.of(config_from({"simulated_noise": True}))
    assert terms.epsilon == math.inf
    assert terms.simulated_noise is False  # nothing is noised


def test_a_limited_epsilon_limits_delta_too():
    """A δ near 1 allows any ε: a server that may choose it needs hardly any noise."""
    floor = Floor(epsilon=1.0)
    told = {"dp": "example", "epsilon": 0.5}
    assert floor.delta == 1e-5
    assert floor.allows(_terms(**told, delta=1e-5))
    assert not floor.allows(_terms(**told, delta=0.9))
