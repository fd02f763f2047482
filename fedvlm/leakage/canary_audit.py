"""The audit of a run by the canaries that were planted in it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvlm.canaries import HOST, Canaries
from fedvlm.config import Config
from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.federation.result import Result
from fedvlm.leakage.audit import AuditResult
from fedvlm.leakage.canaries import andrew_estimate, exposures
from fedvlm.leakage.conformance import Conformance, check_mechanism
from fedvlm.leakage.intervals import mean_difference
from fedvlm.leakage.ledgers import profile_claim
from fedvlm.leakage.power import Power, canary_power
from fedvlm.leakage.released import not_released, read_released
from fedvlm.leakage.units import Claim, Interval, Unit
from fedvlm.leakage.vantage import Vantage, View, WrongVantageError

VANTAGES = (Vantage.V1, Vantage.V2, Vantage.V3, Vantage.V4)


@dataclass(frozen=True, eq=False)
class CanaryAudit:
    """What the planted canaries of a run show.

    Attributes:
        results: One a vantage: planted against held-out directions. Claims are tested where they
            cover the vantage.
        exposure: Vantage → bits by which planted canaries are more exposed than held-out ones.
        andrew: ε at client level estimated from the last adapter (Andrew et al. 2023), or None
            where canaries are no clients.
        conformance: Noise and clip norm against the stated ones; None where nothing is stated of
            the released sum.
        power: What a bound by so many canaries can show of the claim; None where none is tested.
    """

    results: list[AuditResult]
    exposure: dict[str, Interval]
    andrew: float | None
    conformance: Conformance | None
    power: Power | None = None

    @property
    def refuted(self) -> bool:
        """Whether a claim is refuted, or the mechanism isn't what it is said to be."""
        violated = self.conformance is not None and self.conformance.violated
        return violated or any(one.refuted for one in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as JSON takes it."""
        check = self.conformance
        return {
            "rows": [
                one.to_dict() | {"exposure_bits": vars(self.exposure[one.vantage])}
                for one in self.results
            ],
            "andrew_epsilon_estimate": self.andrew,
            "conformance": check and vars(check) | {"violated": check.violated},
            "power": self.power and vars(self.power),
        }


def canary_scores(view: View, canaries: Canaries, config: Config) -> NDArray[np.float64]:
    """Return how much of each canary a party finds in what it saw: shape (m,).

    Raises:
        WrongVantageError: It saw no weights at all.
    """
    if view.updates is not None:
        if config.canary_clients:  # each is alone in an update
            sent = view.updates[:, config.data.clients :].sum(axis=0)
            return np.einsum("mp,mp->m", canaries.directions, sent).astype(np.float64)
        return canaries.scores(view.updates[:, HOST].sum(axis=0))
    if view.aggregates is not None:
        return canaries.scores(view.aggregates.sum(axis=0))
    return canaries.scores(view.need("released", "canaries") - view.initial)


def canaries_in(folder: Path, config: Config, size: int) -> Canaries:
    """Return the canaries of a run.

    Raises:
        ConfigError: The run planted none.
        IntegrityError: The transcript names others.
    """
    if not config.audit.canaries:
        raise ConfigError(f"{folder} planted no canaries; run it with canaries = 200, say")
    canaries = Canaries.of_run(config, size)
    index = json.loads((folder / "transcript" / "index.json").read_text(encoding="utf-8"))
    if (index.get("canaries") or {}).get("fingerprint") != canaries.fingerprint:
        raise IntegrityError(f"the transcript of {folder} names other canaries than its seed")
    return canaries


def _conformance(
    folder: Path, config: Config, result: Result, canaries: Canaries, alpha: float
) -> Conformance | None:
    """Check the released sums where result and configuration state what they are made of."""
    if result.privacy is None or not config.canary_clients or not_released(config):
        return None
    released = read_released(folder, config, result)
    rate = config.server.fraction if config.privacy.dp == "client" else 1.0
    return check_mechanism(
        released.totals, canaries, released.clip_norms, released.stds, alpha, rate
    )


def audit_canaries(
    folder: Path, config: Config, size: int, claim: Claim | None, alpha: float
) -> CanaryAudit:
    """Audit a run by its canaries, α split among vantages and the check of the mechanism.

    Args:
        folder: The run's folder.
        config: Its configuration.
        size: Parameters P of the adapter.
        claim: The run's claim, or None.
        alpha: Chance that anything here is wrong, in (0, 1).

    Raises:
        ConfigError: The run planted no canaries.
        IntegrityError: Its transcript names others.
    """
    result, canaries = Result.load(folder), canaries_in(folder, config, size)
    if claim is not None:
        claim = profile_claim(folder, config, claim)
    share = alpha / (len(VANTAGES) + 1)
    results, bits = [], {}
    for vantage in VANTAGES:
        try:
            # The host knows its own canaries: at V3 another client is looking.
            view = View.from_run(folder, vantage, attacker=HOST + 1)
        except WrongVantageError:
            continue
        # A server that adds the noise itself has seen the updates before it.
        covered = not (config.privacy.dp == "client" and vantage is Vantage.V1)
        scores = canary_scores(view, canaries, config)
        results.append(
            AuditResult(
                scores,
                canaries.planted,
                unit=Unit.CLIENT if config.canary_clients else Unit.SAMPLE,
                claimed=claim if covered else None,
                alpha=share,
                attack="canaries",
                vantage=str(vantage),
                coins="fair",  # the experiment's, drawn again above
            )
        )
        inside, outside = exposures(scores, canaries.planted)
        bits[str(vantage)] = mean_difference(inside, outside, share)
    andrew = None
    if config.canary_clients:
        view = View.from_run(folder, Vantage.V4)
        cosines = canaries.cosines(view.need("released", "andrew") - view.initial)
        andrew = andrew_estimate(cosines[canaries.planted], size, config.privacy.delta).value
    power = canary_power(config.audit.canaries, claim, share) if claim is not None else None
    return CanaryAudit(
        results, bits, andrew, _conformance(folder, config, result, canaries, share), power
    )
