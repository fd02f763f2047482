"""Canaries planted in real federations: found where nothing hides them, and silent where DP does.

A run whose noise was halved, or whose clipping was switched off, is flagged. The noise of a run is
drawn from the seed here, so that no test can flake.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from fedvlm.canaries import Canaries, canary_gradients, hidden_in
from fedvlm.config import Config, config_from
from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.federation import Result, distributed, private, private_client, simulate
from fedvlm.federation.distributed import distributed_mechanism
from fedvlm.leakage.audit_run import claim_of
from fedvlm.leakage.canary_audit import CanaryAudit, audit_canaries, canary_scores
from fedvlm.leakage.run_checks import check_run
from fedvlm.leakage.units import Unit
from fedvlm.leakage.vantage import Vantage, View, WrongVantageError
from fedvlm.privacy import GaussianMechanism, Ledger, clipping, dpsgd
from fedvlm.privacy.noise import NoiseSource
from fedvlm.privacy.skellam import SkellamMechanism

PRIVATE = {"simulated_noise": True, "epsilon": 8.0, "rounds": 3, "canaries": 64}


def _run(folder: Path, settings: dict) -> tuple[CanaryAudit, Config]:
    config = config_from({**settings, "transcript": True})
    result = simulate(config, out=folder)
    size = int(result.adapter["parameters"])
    return audit_canaries(folder, config, size, claim_of(result), 0.05), config


def _violated(folder: Path, config: Config) -> set[str]:
    checks = check_run(folder, config, Result.load(folder))
    assert checks is not None
    return {check.name for check in checks.checks if check.violated}


def _everybody(count: int, rate: float, noise: NoiseSource) -> np.ndarray:
    return np.arange(count)


def _same_noise(self, total: np.ndarray, noise: NoiseSource) -> np.ndarray:
    return total + self.std * np.random.default_rng(0).normal(size=total.size)


_LAST: list[int] = []


def _off_at_last(self, total: np.ndarray, noise: NoiseSource) -> np.ndarray:
    _LAST.append(1)
    return total + (len(_LAST) % 3 > 0) * self.std * noise.gaussian(1.0, total.size)


def _one_short(self, mechanism, times: int = 1):
    paid = len(self.history) and self.releases >= 2
    return None if paid else _SPEND(self, mechanism, times)


_SPEND = Ledger.spend


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("where", "name", "fault", "told"),
    [
        (GaussianMechanism, "release", _same_noise, "noise between rounds"),
        (GaussianMechanism, "release", _off_at_last, "noise by round and place"),
        (private, "poisson_sample", _everybody, "draws of clients"),
        (Ledger, "spend", _one_short, "epsilon counted again"),
        (SkellamMechanism, "decode", None, "noise between rounds"),
    ],
)
def test_t2_sabotaged_federations_are_told_by_their_transcripts(
    where, name: str, fault, told: str, small_run, tmp_path, monkeypatch
) -> None:
    settings = {**small_run, **PRIVATE, "dp": "client", "clip_norm": 0.1, "fraction": 0.5}
    if where is SkellamMechanism:  # every client's secret seed is the same in each round
        settings |= {"dp": "distributed", "protect": "secagg", "canaries": 24, "fraction": 1.0}
        where, name = private_client, "noise_source"
        source = private_client.noise_source
        fault = lambda config, kind, client, number: source(config, kind, client, 1)  # noqa: E731
        monkeypatch.setattr(private_client, "rotation_seed", lambda config, number: 5)
        monkeypatch.setattr(distributed, "rotation_seed", lambda config, number: 5)
    monkeypatch.setattr(where, name, fault)
    _, config = _run(tmp_path, settings)
    assert told in _violated(tmp_path, config)


def test_canaries_without_noise_are_found_by_server_sum_and_holder(small_run, tmp_path) -> None:
    found, config = _run(tmp_path, {**small_run, "canaries": 64, "rounds": 2})
    auc = {one.vantage: one.auc.value for one in found.results}
    assert auc["V1"] >= 0.99
    assert min(auc.values()) > 0.9
    assert found.exposure["V1"].low > 2.0
    assert not found.refuted  # nothing was claimed
    assert found.conformance is None
    assert found.results[0].unit is Unit.SAMPLE
    index = json.loads((tmp_path / "transcript" / "index.json").read_text())
    canaries = Canaries.of_run(config, View.from_run(tmp_path, "V4").initial.size)
    assert index["canaries"] == {"count": 64, "fingerprint": canaries.fingerprint}
    with pytest.raises(WrongVantageError, match="V5"):
        canary_scores(View.from_run(tmp_path, Vantage.V5), canaries, config)


def test_client_level_dp_is_flagged_without_its_noise_or_its_clip(
    small_run, tmp_path, monkeypatch
) -> None:
    settings = {**small_run, **PRIVATE, "dp": "client", "clip_norm": 0.1}
    honest, config = _run(tmp_path / "honest", settings)
    assert _violated(tmp_path / "honest", config) == set()
    assert honest.conformance is not None
    assert not honest.refuted
    assert honest.conformance.noise_ratio > 1 > honest.conformance.clip_ratio > 0.3
    assert honest.results[0].claimed is None  # the server itself adds the noise
    assert honest.results[1].claimed.unit is Unit.CLIENT
    assert len(honest.results[1].claimed.profile) > 20
    assert honest.andrew is not None
    stated = GaussianMechanism.std.fget
    with monkeypatch.context() as patch:
        patch.setattr(GaussianMechanism, "std", property(lambda self: stated(self) / 2))
        halved, config = _run(tmp_path / "halved", settings)
    assert halved.refuted
    assert halved.conformance.noise_ratio < 0.8
    assert "noise by round and place" in _violated(tmp_path / "halved", config)
    with monkeypatch.context() as patch:
        patch.setattr(clipping, "clip", lambda update, clip_norm: update.astype(np.float64))
        loose, config = _run(tmp_path / "loose", settings)
    assert loose.refuted
    assert loose.conformance.clip_ratio > 5
    assert "sum of clipped updates" in _violated(tmp_path / "loose", config)
    assert "clip norms long" in str(loose.conformance)
    assert json.loads(json.dumps(loose.to_dict()))["conformance"]["violated"]


def test_canaries_weigh_their_most_where_weights_are_capped(small_run, tmp_path) -> None:
    settings = {**small_run, **PRIVATE, "dp": "client", "clip_norm": 0.1, "weight_cap": 50}
    found, _ = _run(tmp_path, settings)
    assert not found.refuted
    assert found.conformance is not None
    assert found.conformance.clip_ratio > 0.3


@pytest.mark.slow
def test_distributed_dp_is_flagged_when_clients_halve_their_noise(
    small_run, tmp_path, monkeypatch
) -> None:
    settings = {**small_run, **PRIVATE, "dp": "distributed", "protect": "secagg"}
    settings |= {"canaries": 24, "clip_norm": 0.1}
    honest, config = _run(tmp_path / "honest", settings)
    assert _violated(tmp_path / "honest", config) == set()
    assert [one.vantage for one in honest.results] == ["V2", "V3", "V4"]
    assert all(one.claimed is not None for one in honest.results)
    assert not honest.refuted
    stated = SkellamMechanism.local_variance.fget
    distributed_mechanism.cache_clear()
    monkeypatch.setattr(SkellamMechanism, "local_variance", property(lambda self: stated(self) / 4))
    halved, _ = _run(tmp_path / "halved", settings)
    distributed_mechanism.cache_clear()
    assert halved.refuted
    assert halved.conformance.noise_ratio < 1


def test_examples_that_are_canaries_flag_dp_sgd_without_a_clip(
    small_run, tmp_path, monkeypatch
) -> None:
    """Client 0's canaries are sampled, clipped and noised as its examples are."""
    settings = {**small_run, "dp": "example", "simulated_noise": True, "epsilon": 1.0}
    settings |= {"canaries": 400, "clip_norm": 0.1}
    honest, config = _run(tmp_path / "honest", settings)
    assert not honest.refuted
    assert honest.results[0].claimed.unit is Unit.SAMPLE
    assert honest.conformance is None
    assert honest.power is not None
    assert "canaries can show" in str(honest.power)
    checks = check_run(tmp_path / "honest", config, Result.load(tmp_path / "honest"))
    assert checks is not None
    assert not checks.violated
    assert any("DP-SGD" in reason for reason in checks.unchecked)
    monkeypatch.setattr(dpsgd, "_coefficients", lambda norms, clip_norm: norms * 0 + 1)
    loose, _ = _run(tmp_path / "loose", settings)
    assert loose.refuted
    assert loose.results[0].auc.value > honest.results[0].auc.value + 0.15


def test_a_run_without_canaries_or_with_others_is_refused(small_run, tmp_path) -> None:
    settings = {**small_run, "canaries": 8, "rounds": 1}
    _run(tmp_path, settings)
    size = int(Result.load(tmp_path).adapter["parameters"])
    with pytest.raises(ConfigError, match="planted no canaries"):
        audit_canaries(tmp_path, config_from({**small_run}), size, None, 0.05)
    with pytest.raises(IntegrityError, match="other canaries"):
        audit_canaries(tmp_path, config_from({**settings, "seed": 1}), size, None, 0.05)


def test_hidden_canaries_are_half_as_long_as_the_update() -> None:
    config = config_from({"canaries": 100})
    update = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    extra = hidden_in(config, update) - update
    assert np.linalg.norm(extra) == pytest.approx(np.linalg.norm(update) / 2, rel=0.1)
    rows = canary_gradients(config, 20_000)
    np.testing.assert_allclose(
        np.linalg.norm(rows, axis=1), 10 * config.privacy.clip_norm, rtol=1e-5
    )
    with pytest.raises(ConfigError, match="at least 8"):
        config_from({"canaries": 3})
