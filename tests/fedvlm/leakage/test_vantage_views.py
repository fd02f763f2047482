"""What each vantage sees of a run, and that an attack raises where it saw too little."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.leakage.attacks import ATTACKS
from fedvlm.leakage.vantage import Vantage, View, WrongVantageError

ROUNDS, CLIENTS, SIZE = 3, 4, 50


def _write(folder: Path, *, single: bool) -> np.ndarray:
    """Write a run of FedAvg; returns the true mean updates (T, P)."""
    rng = np.random.default_rng(0)
    place = folder / "transcript"
    place.mkdir(parents=True)
    index = {"protection": "plain" if single else "secagg", "schema": "s", "nodes": CLIENTS}
    (place / "index.json").write_text(json.dumps(index))
    adapter, weights = rng.normal(size=SIZE), np.arange(1, CLIENTS + 1)
    means = []
    for number in range(1, ROUNDS + 1):
        updates = rng.normal(size=(CLIENTS, SIZE))
        order = rng.permutation(CLIENTS)
        arrays = {"global_adapter": adapter.astype(np.float32)}
        if single:
            arrays["updates"] = (adapter + updates[order]).astype(np.float32)
            arrays["clients"] = order + 1
            arrays["num_examples"] = weights[order]
        np.savez(place / f"round-{number:03d}.npz", **arrays)
        mean = np.average(updates, axis=0, weights=weights)
        means.append(mean)
        adapter = adapter + mean
    np.savez(folder / "checkpoint.npz", vector=adapter.astype(np.float32))
    return np.array(means)


def test_each_vantage_sees_its_part_only(tmp_path: Path) -> None:
    means = _write(tmp_path, single=True)
    views = {v: View.from_run(tmp_path, v) for v in Vantage}
    assert views[Vantage.V1].need("updates", "t").shape == (ROUNDS, CLIENTS, SIZE)
    assert views[Vantage.V2].updates is None
    np.testing.assert_allclose(views[Vantage.V2].aggregates, means, atol=1e-5)
    assert views[Vantage.V3].attacker == 0
    assert views[Vantage.V4].globals_ is None
    assert views[Vantage.V4].aggregates is None
    assert views[Vantage.V5].released is None


def test_another_client_subtracts_its_own_update(tmp_path: Path) -> None:
    _write(tmp_path, single=True)
    server, client = (View.from_run(tmp_path, v) for v in (Vantage.V1, Vantage.V3))
    updates = server.need("updates", "test")
    expected = np.average(updates[:, 1:], axis=1, weights=[2, 3, 4])
    np.testing.assert_allclose(client.aggregates, expected, atol=1e-6)


def test_clients_that_were_not_drawn_have_no_update(tmp_path: Path) -> None:
    """The last one never was, and nobody was in the second round."""
    _write(tmp_path, single=True)
    for path in sorted((tmp_path / "transcript").glob("round-*.npz")):
        with np.load(path) as file:
            arrays = dict(file)
        drawn = arrays["clients"] < CLIENTS
        kept = {k: v[drawn] for k, v in arrays.items() if k != "global_adapter"}
        if path.stem == "round-002":
            kept = {}
        np.savez(path, global_adapter=arrays["global_adapter"], **kept)
    updates = View.from_run(tmp_path, Vantage.V1).need("updates", "test")
    assert updates.shape == (ROUNDS, CLIENTS, SIZE)
    heard = np.abs(updates).sum(axis=2) > 0
    assert heard.sum(axis=1).tolist() == [CLIENTS - 1, 0, *[CLIENTS - 1] * (ROUNDS - 2)]
    assert not heard[:, -1].any()
    assert np.isfinite(View.from_run(tmp_path, Vantage.V3).aggregates).all()


def test_there_is_no_v1_of_a_masked_run(tmp_path: Path) -> None:
    _write(tmp_path, single=False)
    with pytest.raises(WrongVantageError, match="saw no single update"):
        View.from_run(tmp_path, Vantage.V1)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_an_attack_raises_where_it_saw_too_little(attack, tmp_path: Path) -> None:
    _write(tmp_path, single=True)
    refused = 0
    for vantage in Vantage:
        view = View.from_run(tmp_path, vantage)
        if attack.available(view):
            continue
        refused += 1
        with pytest.raises(WrongVantageError, match=rf"{attack.name} needs .* {vantage}"):
            attack(view, None, None)  # raises before it measures anything
    assert refused == {"api": 0, "released": 1, "globals_": 2}[attack.needs[0]] + (
        2 if "updates" in attack.needs else 0
    )


def test_a_missing_or_broken_transcript_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="transcript = true"):
        View.from_run(tmp_path, "V4")
    _write(tmp_path, single=True)
    (tmp_path / "transcript" / "round-002.npz").write_bytes(b"PK nonsense")
    with pytest.raises(IntegrityError, match="broken"):
        View.from_run(tmp_path, "V4")
