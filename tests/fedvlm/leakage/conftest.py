"""Runs that are written rather than trained: transcript, checkpoint and result in their formats.

The server's part is the library's own `release_round` and ledger; what clients send is drawn here.
Each way to sabotage a run is one argument.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvlm.canaries import Canaries, canary_update
from fedvlm.config import Config, config_from
from fedvlm.federation.checkpoint import Checkpoint
from fedvlm.federation.result import Result
from fedvlm.privacy import Ledger
from fedvlm.privacy.clipping import AdaptiveClip, ClientMechanism, release_round

SIZE, CLIENTS, CANARIES = 1500, 3, 64
LARGE = 2**63


def noise_multiplier(fraction: float, rounds: int) -> float:
    """Return noise of ε = 8 at δ = 1e-5 where all take part (μ = 1.66), and some noise else."""
    return rounds**0.5 / 1.66 if fraction == 1 else 1.0


class TestNoise:
    """Normal noise from a generator, which a sabotage may bend."""

    __test__ = False
    simulated = True

    def __init__(self, rng: np.random.Generator, bend: Callable[[np.ndarray], np.ndarray]) -> None:
        self._rng, self._bend = rng, bend

    def gaussian(self, std: float, size: int) -> np.ndarray:
        return std * self._bend(self._rng.normal(size=size))

    def noised(self, values: np.ndarray, std: float) -> np.ndarray:
        return values + self.gaussian(std, values.size).reshape(values.shape)


@dataclass
class Written:
    """A run that was written to a folder."""

    folder: Path
    config: Config
    result: Result
    totals: list[np.ndarray] = field(default_factory=list)


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    rounds: int = 3,
    fraction: float = 1.0,
    settings: dict[str, Any] | None = None,
    bend: Callable[[np.ndarray, int], np.ndarray] = lambda noise, number: noise,
    noise_seed: Callable[[int], int] = lambda number: 1000 + number,
    draw: Callable[[np.ndarray, int], np.ndarray] = lambda coins, number: coins,
    clip_times: float = 1.0,
    paid: int | None = None,
    node_ids: str = "",
) -> Written:
    """Write a run at client level.

    Args:
        folder: Where to.
        seed: Of updates, coins and noise.
        rounds: T.
        fraction: q.
        settings: Further settings.
        bend: What becomes of a round's standard normal noise.
        noise_seed: Seed of a round's noise, less 10^6 times `seed`.
        draw: What becomes of a round's coins, shape (K,), bool.
        clip_times: What the clip norm is multiplied with, against what is stated.
        paid: Rounds on the ledger, if not all.
        node_ids: "" for 1…n, "list" or "mapping" for random ids on both sides of 2^63.
    """
    config = config_from(
        {
            "dp": "client",
            "clients": CLIENTS,
            "canaries": CANARIES,
            "rounds": rounds,
            "fraction": fraction,
            "clip_norm": 0.1,
            "transcript": True,
            "simulated_noise": True,
            "epsilon": 8.0,
            **(settings or {}),
        }
    )
    z, expected = noise_multiplier(fraction, rounds), fraction * config.nodes
    adaptive = AdaptiveClip(bit_std=max(expected / 20, z)) if config.privacy.adaptive else None
    mechanism = ClientMechanism(0.1, z, fraction, adaptive)
    ledger = Ledger("client", np.inf, 1e-5)
    ledger.spend(mechanism, rounds if paid is None else paid)
    rng = np.random.default_rng([seed, 7])
    places = np.arange(config.nodes)
    ids = rng.permutation(
        np.array([LARGE + (-1) ** int(k) * 7919 * (int(k) + 1) for k in places], dtype=np.uint64)
    )
    index = {"protection": "plain", "schema": "s", "nodes": config.nodes}
    drawn_canaries = Canaries.of_run(config, SIZE)
    index["canaries"] = {"count": CANARIES, "fingerprint": drawn_canaries.fingerprint}
    if node_ids == "list":
        index["node_ids"] = ids.tolist()
    if node_ids == "mapping":
        index["node_ids"] = {str(one): place for place, one in enumerate(ids.tolist())}
    place = folder / "transcript"
    place.mkdir(parents=True)
    (place / "index.json").write_text(json.dumps(index))
    adapter = rng.normal(size=SIZE).astype(np.float32) * 0.1
    momentum, entries = np.zeros(SIZE), [{"round": 0}]
    for number in range(1, rounds + 1):
        coins = draw(rng.random(config.nodes) < fraction, number)
        updates = [
            rng.normal(size=SIZE) * 0.02 / np.sqrt(SIZE) * (1 + 20 * (k == 0))
            if k < CLIENTS
            else canary_update(config, SIZE, int(k))
            for k in places
        ]
        sent = [(adapter + updates[k]).astype(np.float32) for k in places[coins]]
        who = ids[coins] if node_ids else places[coins] + 1
        arrays: dict[str, np.ndarray] = {"global_adapter": adapter}
        if len(sent):
            arrays |= {"updates": np.stack(sent), "clients": who}
            arrays["num_examples"] = np.full(len(sent), 40)
        np.savez(place / f"round-{number:03d}.npz", **arrays)
        stream = np.random.default_rng([seed, noise_seed(number)])
        noise = TestNoise(stream, lambda values, n=number: bend(values, n))
        used = ClientMechanism(
            mechanism.clip_norm * clip_times, z / clip_times, fraction, mechanism.adaptive
        )
        if adaptive is not None and clip_times != 1:
            used = ClientMechanism(mechanism.clip_norm * clip_times, z / clip_times, fraction)
        released = release_round(
            used, [one - adapter for one in sent], [1.0] * len(sent), SIZE, expected, noise
        )
        following = released.next_clip_norm if used.adaptive else mechanism.clip_norm
        mechanism = ClientMechanism(following, z, fraction, adaptive)
        step = released.mean
        if config.server.optimizer == "fedavgm":
            momentum = config.server.momentum * momentum - step
            step = -config.server.learning_rate * momentum
        adapter = (adapter + step).astype(np.float32)
        entries.append({"round": number, "clients": round(expected), "next_clip_norm": following})
    privacy = {
        "unit": "client",
        "epsilon": ledger.spent.value,
        "delta": 1e-5,
        "noise_multiplier": z,
        "sample_rate": fraction,
        "expected_clients": expected,
    }
    result = Result(
        {}, entries, privacy, {"name": "plain"}, [], config.to_dict(), {}, 0, {}, {"schema": "s"}
    )
    result.save(folder)
    state = {"privacy": np.array(json.dumps({"ledger": ledger.to_json(), "clip_norm": 0.1}))}
    Checkpoint(adapter, "s", entries, config.to_dict(), state).save(folder)
    return Written(folder, config, result)


@pytest.fixture
def run_writer() -> Callable[..., Written]:
    """The function that writes a run."""
    return write_run
