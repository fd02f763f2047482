"""An audit of real federations over drawn shapes: masks on and off, reconstruction, the table."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedvlm.canaries import Canaries
from fedvlm.cli import app
from fedvlm.config import Config, config_from
from fedvlm.federation import simulate
from fedvlm.federation.task import load_task
from fedvlm.leakage import reconstruction
from fedvlm.leakage.attacks import ATTACKS
from fedvlm.leakage.canary_audit import canary_scores
from fedvlm.leakage.probe import Candidates, Probe, candidates_of
from fedvlm.leakage.reconstruction import inverted_images
from fedvlm.leakage.shadow_attacks import shadow_scores
from fedvlm.leakage.vantage import Vantage, View, WrongVantageError


@pytest.fixture
def audited(small_run) -> Config:
    settings = {**small_run, "rounds": 2, "membership": "half", "transcript": True, "canaries": 16}
    return config_from({**settings, "learning_rate": 2e-3})


def test_masks_on_and_off_give_the_same_v2_scores_within_quantisation(
    audited, tmp_path: Path
) -> None:
    """The masks are those of the protocol: three clients and a server of secure aggregation."""
    attack = next(one for one in ATTACKS if one.name == "cosine-to-sum")
    planted, cosines = [], []
    for protect in ("plain", "secagg"):
        config = config_from({"protect": protect}, audited)
        simulate(config, out=tmp_path / protect)
        task = load_task(config)
        view = View.from_run(tmp_path / protect, Vantage.V2)
        canaries = Canaries.of_run(config, task.view.size)
        planted.append(canary_scores(view, canaries, config))
        cosines.append(attack(view, Probe(task), candidates_of(task, 100)))
    assert np.abs(planted[0]).max() > 0.01
    np.testing.assert_allclose(planted[0], planted[1], atol=1e-3)
    np.testing.assert_allclose(cosines[0], cosines[1], atol=1e-2)


def test_the_command_audits_a_run_with_all_there_is(
    audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "_STEPS", 2)
    simulate(audited, out=tmp_path)
    found = CliRunner().invoke(app, ["audit", str(tmp_path)])
    assert found.exit_code == 0, found.output
    for told in ("canaries", "caption-exposure", "recall-gap", "gradient-inversion"):
        assert told in found.output
    audit = json.loads((tmp_path / "audit.json").read_text())
    assert {row["vantage"] for row in audit["canaries"]["rows"]} == {"V1", "V2", "V3", "V4"}
    assert audit["canaries"]["rows"][0]["auc"] >= 0.99
    rebuilt = {(row["vantage"], row["attack"]) for row in audit["reconstructions"]}
    assert {("V1", "gradient-inversion"), ("V2", "gradient-inversion")} < rebuilt
    assert all(row["low"] <= row["difference"] <= row["high"] for row in audit["reconstructions"])


@pytest.mark.parametrize("adapter", ["feature", "prompt"])
def test_updates_of_other_adapters_are_inverted_too(
    adapter: str, audited, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "_STEPS", 3)
    config = config_from({"rounds": 1, "adapter": adapter, "canaries": 0}, audited)
    simulate(config, out=tmp_path)
    task = load_task(config)
    who = candidates_of(task, 100).handful(4)
    for vantage in (Vantage.V1, Vantage.V2):
        found = inverted_images(View.from_run(tmp_path, vantage), Probe(task), who)
        assert np.isfinite(found).all()
        assert (found != 0).any()


def test_inversion_and_shadows_raise_where_nothing_was_seen(audited, tmp_path: Path) -> None:
    simulate(config_from({"rounds": 1}, audited), out=tmp_path)
    task = load_task(config_from({"rounds": 1}, audited))
    probe, who = Probe(task), candidates_of(task, 4)
    with pytest.raises(WrongVantageError, match="V4"):
        inverted_images(View.from_run(tmp_path, Vantage.V4), probe, who)
    with pytest.raises(WrongVantageError, match="V5"):
        shadow_scores(View.from_run(tmp_path, Vantage.V5), probe, who)


def test_a_handful_is_half_members_and_spread_over_clients() -> None:
    inside = np.arange(40) % 2 == 0
    found = Candidates(np.arange(40), inside, np.repeat([0, 1], 20)).handful(8)
    assert found.membership.sum() == 4
    assert (found.clients == 0).sum() == 4
