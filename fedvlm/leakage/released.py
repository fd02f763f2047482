"""What a private run released each round, and what it states that this is made of.

The transcript keeps adapters. Where the server's step from a mean to the next adapter can be
undone (FedAvg, FedAvgM), each round's noised sum follows from them; where the server saw single
updates, so does the noise itself.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedvlm.config import Config
from fedvlm.errors import IntegrityError
from fedvlm.federation.result import Result
from fedvlm.leakage.vantage import Record
from fedvlm.privacy.clipping import AdaptiveClip, ClientMechanism, clip

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Released:
    """The noised sums of a run at client level.

    Attributes:
        totals: Shape (T, P): each round's sum of clipped updates, noise included.
        sums: Shape (T, P): the clipped updates alone, where the server saw them; else None.
        cut: Shape (T, P): what clipping took from that sum; None likewise.
        clip_norms: Shape (T,): C of each round, as stated.
        stds: Shape (T,): the least standard deviation of the noise, as stated.
        drawn: Shape (T, K), bool: who answered, where the server saw it; else None.
        sample_rate: Chance of each client to be in a round, as stated.
    """

    totals: Array
    sums: Array | None
    cut: Array | None
    clip_norms: Array
    stds: Array
    drawn: NDArray[np.bool_] | None
    sample_rate: float


def stated(result: Result, name: str, otherwise: float | None = None) -> float:
    """Return a number that a private run states of itself.

    Raises:
        IntegrityError: It states none, or one that isn't finite.
    """
    value = (result.privacy or {}).get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise IntegrityError(f"the run's result states no {name}; got {value!r}")
    return float(value)


def not_released(config: Config) -> str:
    """Return why no noised sum can be read off a run's transcript; empty where it can."""
    if config.privacy.dp == "none":
        return "no privacy is stated"
    if config.privacy.dp == "example" and not config.has_head:
        return (
            "noise, clip and draws of DP-SGD: each step's noised sum passes through Adam on the "
            "client, and is in no transcript"
        )
    if config.has_head:
        return ""
    if config.server.optimizer not in ("fedavg", "fedavgm"):
        return (
            f"noise and clip: the server's {config.server.optimizer} can't be undone from the "
            "adapters"
        )
    return ""


def means(adapters: NDArray[np.float32], config: Config) -> Array:
    """Undo the server's optimiser: shape (T, P), what the mean of each round would have added.

    FedAvgM steps by −η·v_t with v_t = μ·v_{t−1} − mean_t, and v_1 = −mean_1.
    """
    steps = np.diff(adapters.astype(np.float64), axis=0)
    head = config.adapter.kind == "head"
    if config.server.optimizer == "fedavgm" or head:
        steps /= config.adapter.rate if head else config.server.learning_rate
        steps[1:] -= config.server.momentum * steps[:-1].copy()
    return steps


def _of_terms(steps: Array, config: Config, result: Result) -> Released:
    """Return the sums of images' terms, each with all of its clients' noise."""
    z, bound = stated(result, "noise_multiplier"), stated(result, "clip_norm")
    counts = np.array([entry["clients"] for entry in result.rounds[1:]], dtype=np.float64)
    # Each client's own noise, or each one's share of what the fewest honest ones make up.
    shares = counts / stated(result, "least_noised") if config.privacy.shares_noise else counts
    totals = steps * stated(result, "images")
    norms = np.full(len(steps), bound)
    return Released(totals, None, None, norms, z * bound * np.sqrt(shares), None, 1.0)


def read_released(folder: Path, config: Config, result: Result) -> Released:
    """Read the noised sums of a run for which `not_released` is empty.

    Raises:
        ConfigError: The run kept no transcript.
        IntegrityError: Transcript and result don't fit.
    """
    record = Record.read(folder)
    steps = means(record.adapters, config)
    entries = result.rounds[1:]
    if len(entries) != len(steps):
        raise IntegrityError(
            f"{folder} reports {len(entries)} rounds, and its transcript keeps {len(steps)}"
        )
    norms, z = np.full(len(steps), config.privacy.clip_norm), stated(result, "noise_multiplier")
    if config.privacy.dp == "example":
        return _of_terms(steps, config, result)
    if config.privacy.dp == "distributed":
        counts = np.array([entry["clients"] for entry in entries], dtype=np.float64)
        totals = steps * counts[:, None]
        return Released(totals, None, None, norms, z * norms, None, float(config.server.fraction))
    expected = stated(result, "expected_clients", config.server.fraction * config.nodes)
    if config.privacy.adaptive:
        told = [entry.get("next_clip_norm", np.nan) for entry in entries]
        norms = np.array([config.privacy.clip_norm, *told[:-1]], dtype=np.float64)
        if not (np.isfinite(norms) & (norms > 0)).all():
            raise IntegrityError(f"{folder} doesn't report the clip norm of each round")
        follows = AdaptiveClip(bit_std=max(expected / 20, z))
        z = ClientMechanism(1.0, z, config.server.fraction, follows).updates.noise_multiplier
    sums = cut = drawn = None
    if record.updates is not None:
        drawn, cap = record.heard, config.privacy.weight_cap
        sums, cut = np.zeros_like(steps), np.zeros_like(steps)
        for number, (updates, examples) in enumerate(
            zip(record.updates, record.weights, strict=True)
        ):
            for client in np.flatnonzero(drawn[number]):
                weight = min(float(examples[client]), cap) / cap if cap else 1.0
                kept = clip(updates[client], float(norms[number]))
                sums[number] += weight * kept
                cut[number] += weight * (updates[client] - kept)
    return Released(
        steps * expected, sums, cut, norms, z * norms, drawn, float(config.server.fraction)
    )
