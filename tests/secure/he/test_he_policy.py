"""What a server gets that states the rounds of a run as it likes."""

import math

import pytest
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from secure.errors import PolicyError
from secure.he._flower_state import Counted
from secure.he.policy import HEPolicy


@given(runs=st.integers(1, 60), length=st.integers(1, 5000))
def test_stating_more_rounds_run_by_run_gains_a_server_no_more_than_the_stated_root(runs, length):
    """Each sum is noised for as many as were told before it, and itself: by Pinsker the root."""
    divergence = 0.0
    for stated in range(1, runs + 1):
        policy = HEPolicy(clients=5, bound=1.0, rounds=stated).release(length)
        divergence += length * policy.error**2 / (2 * policy.sigma**2)
    gained = math.sqrt(divergence / 2)
    harmonic = sum(1 / each for each in range(1, runs + 1))
    assert gained <= 2.0**-10 * math.sqrt(harmonic) * (1 + 1e-12)


def test_the_count_is_of_the_key_and_no_run_starts_it_anew(tmp_path):
    def told(run: int, rounds: int) -> bool:
        context = Context(run, 7, {}, RecordDict(), {})
        counted = Counted(context, tmp_path, b"k" * 16)
        counted.send(1)
        try:
            counted.release(1, rounds)
        except PolicyError:
            return False
        return True

    assert [told(1, 1), told(2, 1), told(3, 2), told(4, 2), told(5, 3)] == [
        True,
        False,
        True,
        False,
        True,
    ]


def test_a_stated_rise_is_the_way_round_it(tmp_path):
    """The known limit: a server that may state the rounds gets one sum more a run."""
    context = Context(1, 7, {}, RecordDict(), {})
    counted = Counted(context, tmp_path, b"k" * 16)
    for number in range(1, 6):
        counted.send(number)
        counted.release(number, number)
    counted.send(6)
    with pytest.raises(PolicyError, match="decrypted 5 sums"):
        counted.release(6, 5)
