"""T2: runs that aren't what they state are told by their transcripts; honest ones pass.

Seeds are fixed: no test here can flake. At α = 5 % an honest run of a fresh seed fails a check with
chance 5 % at most.
"""

import json
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
from scipy.stats import binom

from fedvlm.errors import IntegrityError
from fedvlm.leakage.canary_audit import audit_canaries
from fedvlm.leakage.draws import draws_p_value, rounds_to_tell
from fedvlm.leakage.noise_checks import (
    excess_p_value,
    law_p_value,
    repeats_p_value,
    size_p_value,
)
from fedvlm.leakage.power import canary_power, gaussian_strength
from fedvlm.leakage.recount import epsilon_at_least
from fedvlm.leakage.released import Released
from fedvlm.leakage.run_checks import RunChecks, check_run, noise_checks
from fedvlm.leakage.units import Claim, Unit
from fedvlm.privacy import plan
from fedvlm.privacy.profile import privacy_profile


def _failed(checks: RunChecks | None) -> set[str]:
    assert checks is not None
    return {check.name for check in checks.checks if check.violated}


def _uniform(noise: np.ndarray, number: int) -> np.ndarray:
    return np.random.default_rng(number).uniform(-(3**0.5), 3**0.5, len(noise))


def _half_of_the_places(noise: np.ndarray, number: int) -> np.ndarray:
    return noise * (np.random.default_rng(5).random(len(noise)) < 0.5)


SABOTAGES = {
    "same noise in every round": (
        {"noise_seed": lambda number: 1},
        "noise between rounds",
    ),
    "noise of the right variance that is uniform": ({"bend": _uniform}, "law of the noise"),
    "halved noise": ({"bend": lambda noise, n: noise / 2}, "noise by round and place"),
    "noise at 90 %": ({"bend": lambda noise, n: noise * 0.9}, "noise by round and place"),
    "no noise in the last round": (
        {"bend": lambda noise, n: noise * (n % 3 != 0)},
        "noise by round and place",
    ),
    "noise on half of the coordinates": (
        {"bend": _half_of_the_places},
        "noise by round and place",
    ),
    "noise cut at one standard deviation": (
        {"bend": lambda noise, n: np.clip(noise, -1, 1)},
        "law of the noise",
    ),
    "noise that is half the last round's": (
        {"bend": lambda noise, n: 0.7 * noise + 0.714 * np.random.default_rng(1).normal(size=1500)},
        "noise between rounds",
    ),
    "clip times 2": ({"clip_times": 2.0}, "sum of clipped updates"),
    "no clip": ({"clip_times": 1e6}, "sum of clipped updates"),
}


@pytest.mark.parametrize("rounds", [3, 12])
@pytest.mark.parametrize("name", SABOTAGES)
def test_t2_a_sabotaged_run_is_told_every_time(
    name: str, rounds: int, run_writer, tmp_path: Path
) -> None:
    """3 of 3 seeds for 3 rounds, one for 12, at ε = 8; all of them in the slow test below."""
    changes, check = SABOTAGES[name]
    for seed in range(3 if rounds == 3 else 1):
        run = run_writer(tmp_path / str(seed), seed=seed, rounds=rounds, **changes)
        assert check in _failed(check_run(run.folder, run.config, run.result)), (seed, name)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [3, 12])
def test_t2_power_and_false_alarms_over_many_runs(rounds: int, run_writer, tmp_path: Path) -> None:
    """20 seeds: each sabotage in all of them, honest runs in at most 4 at 5 % (chance 0.003)."""
    alarms = 0
    for seed in range(20):
        run = run_writer(tmp_path / f"honest{seed}", seed=seed, rounds=rounds)
        alarms += bool(_failed(check_run(run.folder, run.config, run.result)))
        for number, (changes, check) in enumerate(SABOTAGES.values()):
            folder = tmp_path / f"{seed}-{number}"
            run = run_writer(folder, seed=seed, rounds=rounds, **changes)
            assert check in _failed(check_run(run.folder, run.config, run.result)), (seed, number)
    assert alarms <= 4


DRAWS = {
    "a client that is always drawn": lambda coins, n: np.r_[coins[:-1], True],
    "all are always drawn": lambda coins, n: coins | True,
    "the same draws in every round": lambda coins, n: np.random.default_rng(3).random(67) < 0.3,
}


@pytest.mark.parametrize("name", DRAWS)
def test_t2_draws_that_are_not_the_stated_coins_are_told(
    name: str, run_writer, tmp_path: Path
) -> None:
    for seed in range(2):
        run = run_writer(tmp_path / str(seed), seed=seed, rounds=12, fraction=0.3, draw=DRAWS[name])
        failed = _failed(check_run(run.folder, run.config, run.result))
        assert failed == {"draws of clients"}, (seed, failed)


def test_t2_a_client_that_is_always_drawn_is_not_seen_in_few_rounds_and_that_is_said(
    run_writer, tmp_path: Path
) -> None:
    draw = DRAWS["a client that is always drawn"]
    run = run_writer(tmp_path, rounds=3, fraction=0.3, draw=draw)
    checks = check_run(run.folder, run.config, run.result)
    assert checks is not None
    assert not checks.violated
    (told,) = (check.unseen for check in checks.checks if check.name == "draws of clients")
    needed = rounds_to_tell(67, 0.3, 0.01)
    assert f"told after {needed} rounds, this run has 3" in told
    always = np.zeros((needed, 67), dtype=bool)
    always[:, 5] = True
    assert draws_p_value(always, 0.3)[0] <= 0.01
    assert draws_p_value(always[1:], 0.3)[0] > 0.01


@pytest.mark.parametrize("rounds", [3, 12])
def test_t2_a_ledger_that_is_one_round_short_is_told(
    rounds: int, run_writer, tmp_path: Path
) -> None:
    run = run_writer(tmp_path, rounds=rounds, fraction=0.3, paid=rounds - 1)
    failed = _failed(check_run(run.folder, run.config, run.result))
    assert failed == {"releases on the ledger", "epsilon counted again"}


def test_t2_a_secret_seed_that_never_changes_is_told_by_noise_and_draws(
    run_writer, tmp_path: Path
) -> None:
    run = run_writer(
        tmp_path,
        rounds=6,
        fraction=0.3,
        noise_seed=lambda number: 1,
        draw=DRAWS["the same draws in every round"],
    )
    failed = _failed(check_run(run.folder, run.config, run.result))
    assert failed >= {"noise between rounds", "draws of clients"}


SERVERS = {
    "fedavgm": {"server_optimizer": "fedavgm", "server_learning_rate": 0.7, "server_momentum": 0.9},
    "adaptive clip": {"adaptive": True},
    "both": {"server_optimizer": "fedavgm", "adaptive": True, "server_momentum": 0.5},
}


@pytest.mark.parametrize("name", SERVERS)
def test_t2_momentum_and_adaptive_clips_are_undone_and_checked(
    name: str, run_writer, tmp_path: Path
) -> None:
    """Halved noise, noise off in the last round, and no clip, where nothing was checked."""
    claim = Claim(8.0, 1e-5, Unit.CLIENT)
    for seed in range(1):
        settings = {"settings": SERVERS[name], "seed": seed, "rounds": 4}
        run = run_writer(tmp_path / f"honest{seed}", **settings)
        checks = check_run(run.folder, run.config, run.result, 1e-3)
        assert checks is not None
        assert not checks.violated, _failed(checks)
        if not seed:
            canaries = audit_canaries(run.folder, run.config, 1500, claim, 1e-3)
            assert canaries.conformance is not None
            assert not canaries.refuted
        for number, bend in enumerate(
            (lambda noise, n: noise / 2, lambda noise, n: noise * (n != 4))
        ):
            run = run_writer(tmp_path / f"bent{seed}{number}", bend=bend, **settings)
            failed = _failed(check_run(run.folder, run.config, run.result))
            assert "noise by round and place" in failed
        run = run_writer(tmp_path / f"loose{seed}", clip_times=1e6, **settings)
        assert "sum of clipped updates" in _failed(check_run(run.folder, run.config, run.result))


def test_t2_what_can_not_be_checked_is_said_in_words(run_writer, tmp_path: Path) -> None:
    run = run_writer(tmp_path / "adam", settings={"server_optimizer": "fedadam"})
    checks = check_run(run.folder, run.config, run.result)
    assert checks is not None
    assert any("fedadam can't be undone" in reason for reason in checks.unchecked)
    assert {check.name for check in checks.checks} == {
        "releases on the ledger",
        "epsilon counted again",
    }
    assert all(check.unseen for check in checks.checks)
    assert checks.to_dict()["not_checked"]
    honest = run_writer(tmp_path / "honest", fraction=0.3)
    found = check_run(honest.folder, honest.config, honest.result)
    assert found is not None
    assert len(json.loads(json.dumps(found.to_dict()))["checks"]) == 7
    honest.result.privacy["noise_multiplier"] = float("nan")
    with pytest.raises(IntegrityError, match="states no noise_multiplier"):
        check_run(honest.folder, honest.config, honest.result)


@pytest.mark.parametrize("node_ids", ["list", "mapping"])
def test_n6_a_transcript_of_random_node_ids_is_audited_by_partition(
    node_ids: str, run_writer, tmp_path: Path
) -> None:
    """Ids are on both sides of 2^63; the figures are those of the same run numbered from 1."""
    claim = Claim(8.0, 1e-5, Unit.CLIENT)
    plain = run_writer(tmp_path / "plain")
    run = run_writer(tmp_path / "ids", node_ids=node_ids)
    assert not _failed(check_run(run.folder, run.config, run.result))
    found = [audit_canaries(one.folder, one.config, 1500, claim, 0.05) for one in (plain, run)]
    assert found[0].to_dict() == found[1].to_dict()
    assert found[1].results[0].auc.value > 0.99


def test_a_transcript_that_does_not_fit_its_result_is_refused(run_writer, tmp_path: Path) -> None:
    run = run_writer(tmp_path)
    (tmp_path / "transcript" / "round-003.npz").unlink()
    with pytest.raises(IntegrityError, match="3 rounds, and its transcript keeps 2"):
        check_run(run.folder, run.config, run.result)


def _p_values(rng: np.random.Generator, exact: bool) -> list[float]:
    noise = rng.normal(size=(5, 300))
    if not exact:  # what clients send, and it follows what was released before
        noise[1:] += 0.3 * noise[:-1] + 0.2
    out = [size_p_value(noise)[0], repeats_p_value(noise)[0], law_p_value(noise, exact)]
    drawn = rng.random((5, 40)) < 0.3
    drawn &= rng.random(drawn.shape) < (1.0 if exact else 0.8)  # some drop out
    out.append(draws_p_value(drawn, 0.3)[0])
    return [*out, excess_p_value(noise)[0]] if exact else out


@pytest.mark.parametrize("exact", [True, False])
def test_an_honest_run_fails_a_check_no_more_often_than_said(exact: bool) -> None:
    """Each check at its nominal 5 % fails here with chance 1e-6 at most."""
    rng, draws = np.random.default_rng(11), 200
    alarms = sum(np.array(_p_values(rng, exact)) <= 0.05 for _ in range(draws))
    assert np.max(alarms) <= binom.isf(1e-6, draws, 0.05)


@pytest.mark.parametrize(("rate", "releases"), [(1.0, 3), (0.5, 12), (0.1, 40)])
def test_epsilon_counted_again_is_just_below_the_ledgers(rate: float, releases: int) -> None:
    planned = plan(delta=1e-5, sample_rate=rate, steps=releases, noise_multiplier=1.2)
    found = epsilon_at_least(1.2, rate, releases, 1e-5)
    assert found <= planned.epsilon
    assert found == pytest.approx(planned.epsilon, rel=2e-3)


def _totals(rng: np.random.Generator, rounds: int, noise: np.ndarray) -> Released:
    """Sums of 20 clients behind secure aggregation: signal that persists, and noise."""
    size = noise.shape[1]
    drift = rng.normal(size=size) / np.sqrt(size)
    signal = 3 * drift + 0.5 * rng.normal(size=(rounds, size)) / np.sqrt(size)
    ones = np.ones(rounds)
    return Released(signal + noise, None, None, ones, ones, None, 1.0)


def test_t2_sums_alone_tell_of_missing_halved_bent_and_repeated_noise() -> None:
    """Distributed DP: nobody sees updates; z = 1, 2,000 coordinates, 4 rounds, 5 of 5 each."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(4, 2000))
        bent = {
            "honest": noise,
            "halved": noise / 2,
            "off at last": noise * (np.arange(4) < 3)[:, None],
            "same": np.repeat(noise[:1], 4, axis=0),
            "uniform": rng.uniform(-(3**0.5), 3**0.5, (4, 2000)),
            "half of the places": noise * (rng.random(2000) < 0.5),
        }
        found = {
            name: {c.name for c in noise_checks(_totals(rng, 4, one), 0.01) if c.violated}
            for name, one in bent.items()
        }
        assert found["honest"] == set()
        assert "noise by round and place" in found["halved"] & found["off at last"]
        assert "noise between rounds" in found["same"]
        assert "law of the noise" in found["uniform"]
        assert found["half of the places"]


def test_t2_a_sum_that_is_not_finite_is_no_pass() -> None:
    noise = np.full((2, 50), np.nan)
    with pytest.raises(IntegrityError, match="finite"):
        noise_checks(_totals(np.random.default_rng(0), 2, noise), 0.01)


def test_t2_what_canaries_can_not_show_is_said_in_numbers() -> None:
    """At ε = 8 and example level, 400 canaries refute nothing, whatever the run does."""
    event = dp_accounting.GaussianDpEvent(1 / gaussian_strength(Claim(8.0, 1e-5)))
    claim = Claim(8.0, 1e-5, profile=privacy_profile([(event, 1)]))
    few = canary_power(400, claim, 0.005)
    assert not few.refutable
    assert 2 < few.most < 8
    assert "stand even without any noise" in str(few)
    event = dp_accounting.GaussianDpEvent(1 / gaussian_strength(Claim(1.0, 1e-5)))
    claim = Claim(1.0, 1e-5, profile=privacy_profile([(event, 1)]))
    some = canary_power(400, claim, 0.005)
    assert some.refutable
    assert some.halved < 0.5
    assert f"half of the noise would be refuted in {some.halved:.0%}" in str(some)
