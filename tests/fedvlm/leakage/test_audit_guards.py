"""The guards of an audit, its table, its ROC and its exit code."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation.result import Result
from fedvlm.leakage import audit_run as module
from fedvlm.leakage import cli
from fedvlm.leakage.audit import audit_attacks
from fedvlm.leakage.audit_run import LeakySplitError, RunAudit, blind_baseline, claim_of
from fedvlm.leakage.probe import Candidates, Cosines, candidates_of, distinct
from fedvlm.leakage.run_checks import Check, RunChecks
from fedvlm.leakage.units import Claim, Interval, Unit
from fedvlm.seeds import ExperimentSeed


class _Fixed:
    """A probe whose margins are given."""

    def __init__(self, margins: np.ndarray) -> None:
        self._margins = margins

    def confidence(self, adapter: np.ndarray, indices: np.ndarray) -> np.ndarray:
        return self._margins[indices]

    def cosines(self, adapter: np.ndarray, indices: np.ndarray) -> Cosines:
        return Cosines(self._margins[indices], self._margins[indices])


def _candidates(count: int = 600) -> Candidates:
    inside = np.random.default_rng(0).random(count) < 0.5
    return Candidates(np.arange(count), inside, np.arange(count) % 5)


def test_a_split_that_differs_before_training_is_refused() -> None:
    """Shift 1: missed with chance under 1e-6; an honest split is refused with chance 1e-3."""
    who, rng = _candidates(), np.random.default_rng(1)
    noise = rng.normal(size=600)
    assert blind_baseline(_Fixed(noise), who, np.zeros(1)).covers(0.5)
    with pytest.raises(LeakySplitError, match="not i"):
        blind_baseline(_Fixed(noise + who.membership), who, np.zeros(1))


def _task(membership: str):
    splits = SimpleNamespace(
        clients=(np.arange(0, 50), np.arange(100, 160)),
        non_members=(np.arange(50, 100), np.arange(160, 200)),
    )
    config = config_from({"membership": membership})
    return SimpleNamespace(config=config, splits=splits, seed=ExperimentSeed(0))


def test_candidates_are_drawn_blind_to_the_coin_and_only_where_there_was_one() -> None:
    found = candidates_of(_task("half"), 80)
    assert len(found.indices) == 160
    inside = np.isin(found.indices, np.r_[0:50, 100:160])
    np.testing.assert_array_equal(inside, found.membership)
    np.testing.assert_array_equal(found.indices >= 100, found.clients == 1)
    assert (found.without(0).clients == 1).all()
    with pytest.raises(ConfigError, match="membership = 'half'"):
        candidates_of(_task("all"), 80)


@pytest.mark.parametrize(
    ("privacy", "expected"),
    [
        (None, None),
        ({"unit": "client", "epsilon": 8.0, "delta": 1e-5}, Claim(8.0, 1e-5, Unit.CLIENT)),
        ({"unit": "example", "epsilon": 2.0, "delta": 1e-6}, Claim(2.0, 1e-6, Unit.SAMPLE)),
    ],
)
def test_a_claim_keeps_its_unit(privacy: dict | None, expected: Claim | None) -> None:
    assert claim_of(SimpleNamespace(privacy=privacy)) == expected


def _audit(strength: float, claim: Claim | None) -> RunAudit:
    rng = np.random.default_rng(0)
    inside = rng.random(2000) < 0.5
    scores = {"strong": rng.normal(size=2000) + strength * inside, "weak": rng.normal(size=2000)}
    results = audit_attacks(scores, inside, claimed=claim, vantage="V1")
    baseline = Interval(0.5, 0.45, 0.55, 0.999)
    return RunAudit(results, {"V2": "not seen"}, baseline, claim, {"seed": 0}, 0.05)


@pytest.mark.parametrize(("epsilon", "code"), [(0.5, 3), (20.0, 0)])
def test_a_refuted_claim_is_exit_code_3(
    epsilon: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = _audit(3.0, Claim(epsilon, 1e-5))
    monkeypatch.setattr(cli, "audit_run", lambda folder, **settings: audit)
    Result({}, [], None, {}, [], {}, {}, 0).save(tmp_path)
    app = typer.Typer()
    app.command()(cli.audit_command)
    found = CliRunner().invoke(app, [str(tmp_path)])
    assert found.exit_code == code, found.output
    assert "strong" in found.output
    assert "V2: not seen" in found.output
    assert (tmp_path / "audit-roc.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "audit.json").exists()
    leakage = Result.load(tmp_path).leakage
    assert [row["attack"] for row in leakage] == ["strong", "weak"]
    assert {"auc", "auc_low", "auc_high", "tpr_at_fpr", "epsilon_lower"} <= leakage[0].keys()


def test_the_best_attack_comes_first() -> None:
    audit = _audit(2.0, None)
    assert [one.attack for one in audit.best] == ["strong"]
    assert not audit.refuted
    assert audit.to_dict()["rows"][0]["claimed"] is None
    assert module.GUARD_ALPHA < 0.05


def test_t2_what_failed_what_was_not_checked_and_what_is_not_seen_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = RunChecks(
        (
            Check("noise between rounds", True, "most like in round 2", "under 9 %", 1e-9),
            Check("law of the noise", False, "4.6 % beyond", "a law within 0.01", 0.4),
        ),
        ("draws: who was drawn isn't in the transcript",),
        0.95,
    )
    audit = replace(_audit(0.0, Claim(8.0, 1e-5)), checks=checks)
    assert audit.refuted
    monkeypatch.setattr(cli, "audit_run", lambda folder, **settings: audit)
    Result({}, [], None, {}, [], {}, {}, 0).save(tmp_path)
    app = typer.Typer()
    app.command()(cli.audit_command)
    found = CliRunner().invoke(app, [str(tmp_path)])
    assert found.exit_code == 3
    assert "noise between rounds: VIOLATED, most like in round 2" in found.output
    assert "would not see: a law within 0.01" in found.output
    assert "not checked: draws: who was drawn" in found.output
    told = json.loads((tmp_path / "audit.json").read_text())["checks"]
    assert told["violated"]
    assert told["checks"][1]["unseen"] == "a law within 0.01"
    passed = RunChecks(checks.checks[1:], (), 0.95)
    assert not replace(audit, checks=passed).refuted


def test_p1_pairs_of_one_image_are_one_candidate() -> None:
    """They share a coin, or what is known of it."""
    images = torch.arange(12.0).reshape(12, 1) // 3  # three pairs an image
    pairs = SimpleNamespace(images=lambda rows: {"pixel_values": images[torch.from_numpy(rows)]})
    who = Candidates(np.arange(12)[::-1].copy(), np.arange(12) % 2 == 0, np.zeros(12, int))
    kept = distinct(SimpleNamespace(pairs=pairs, kind="retrieval"), who)
    assert kept.indices.tolist() == [11, 8, 5, 2]
    assert kept.membership.tolist() == [True, False, True, False]
