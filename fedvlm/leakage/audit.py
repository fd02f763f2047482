"""The result of one attack: scores, who was in, and all that may be said from them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from fedvlm.errors import ConfigError
from fedvlm.leakage.epsilon import clopper_pearson_bonferroni, gaussian_dp
from fedvlm.leakage.intervals import auc_interval, auc_of, cluster_bootstrap
from fedvlm.leakage.one_run import one_run, one_run_f_dp, refutes_profile
from fedvlm.leakage.roc import FPRS, Roc, TprAtFpr, roc, tpr_at_fpr
from fedvlm.leakage.units import Claim, EpsilonLower, Interval, Kind, Unit

TRIALS = ("one-run", "independent")
_DELTA = 1e-5
_UNFAIR = 1e-6  # a fair coin is taken for an unfair one with at most this chance


@dataclass(frozen=True, eq=False)
class AuditResult:
    """Scores of an attack on any model, and what they show.

    Attributes:
        scores: Shape (n,), finite, higher where the attacker believes "member".
        membership: Shape (n,), bool; both kinds occur.
        unit: Whose presence was guessed: "sample" or "client".
        claimed: The claim to test: (epsilon, delta) at the audit's unit, a `Claim`, or None.
        alpha: One less the confidence of every interval, in (0, 0.5).
        trials: "one-run" where the scores come from one trained model: only the one-run
            estimators are then bounds. "independent" where each score has a run of its own.
        clusters: Shape (n,), int, client or run of each score, where scores of one move together;
            AUC and TPR then get bootstrap intervals over clusters.
        attack: Name of the attack.
        vantage: Name of the vantage, or empty.

    Raises:
        ConfigError: Shapes differ, a score isn't finite, one kind is missing, or the claim is at
            another unit than the audit.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> inside = rng.random(2000) < 0.5
        >>> found = AuditResult(rng.normal(size=2000) + 3 * inside, inside, claimed=(0.1, 1e-5))
        >>> found.refuted
        True
    """

    scores: NDArray[np.float64]
    membership: NDArray[np.bool_]
    unit: Unit = Unit.SAMPLE
    claimed: Claim | tuple[float, float] | None = None
    alpha: float = 0.05
    trials: str = "one-run"
    clusters: NDArray[np.int64] | None = None
    attack: str = "scores"
    vantage: str = ""

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores, dtype=np.float64)
        inside = np.asarray(self.membership)
        if scores.ndim != 1 or inside.shape != scores.shape:
            raise ConfigError(
                f"scores and membership must be two vectors of one length; got shapes "
                f"{scores.shape} and {inside.shape}"
            )
        if not np.isin(inside, (0, 1)).all():
            raise ConfigError("membership must hold booleans (or 0 and 1)")
        inside = inside.astype(bool)
        if not np.isfinite(scores).all():
            raise ConfigError(f"{int((~np.isfinite(scores)).sum())} scores are not finite")
        if inside.all() or not inside.any():
            raise ConfigError("an audit needs members and non-members; got one kind only")
        if not 0 < self.alpha < 0.5 or self.trials not in TRIALS:
            raise ConfigError(
                f"alpha must be in (0, 0.5) and trials one of {', '.join(TRIALS)}; got "
                f"{self.alpha} and {self.trials!r}"
            )
        try:
            unit = Unit(self.unit)
        except ValueError as error:
            raise ConfigError(f"unit must be sample or client; got {self.unit!r}") from error
        claimed = self.claimed
        if isinstance(claimed, tuple):
            claimed = Claim(*claimed, unit=unit)
        if claimed is not None and claimed.unit != unit:
            raise ConfigError(
                f"a claim at {claimed.unit} level can't be tested by an audit at {unit} level"
            )
        if self.clusters is not None:
            clusters = np.asarray(self.clusters)
            if clusters.shape != scores.shape:
                raise ConfigError(f"clusters must have shape {scores.shape}, got {clusters.shape}")
            object.__setattr__(self, "clusters", clusters)
        for name, value in (("scores", scores), ("membership", inside), ("unit", unit)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "claimed", claimed)

    @property
    def members(self) -> NDArray[np.float64]:
        """Scores of members."""
        return self.scores[self.membership]

    @property
    def others(self) -> NDArray[np.float64]:
        """Scores of non-members."""
        return self.scores[~self.membership]

    @cached_property
    def curve(self) -> Roc:
        """The ROC."""
        return roc(self.members, self.others)

    @cached_property
    def auc(self) -> Interval:
        """Area under the ROC: DeLong's interval, or a bootstrap over clusters."""
        if self.clusters is None:
            return auc_interval(self.members, self.others, self.alpha)
        rng = np.random.default_rng(0)
        return cluster_bootstrap(
            auc_of, self.scores, self.membership, self.clusters, rng, self.alpha
        )

    @cached_property
    def tpr(self) -> tuple[TprAtFpr, ...]:
        """TPR at FPR 10 %, 1 % and 0.1 %."""
        exact = tuple(tpr_at_fpr(self.members, self.others, fpr, self.alpha) for fpr in FPRS)
        if self.clusters is None:
            return exact
        out = []
        for one in exact:
            interval = cluster_bootstrap(
                lambda a, b, f=one.fpr: roc(a, b).tpr_at(f),
                self.scores,
                self.membership,
                self.clusters,
                np.random.default_rng(0),
                self.alpha,
            )
            out.append(replace(one, tpr=interval))
        return tuple(out)

    @property
    def delta(self) -> float:
        """The claim's delta, or 1e-5."""
        return self.claimed.delta if isinstance(self.claimed, Claim) else _DELTA

    @cached_property
    def fair_coins(self) -> bool:
        """Whether membership can be the outcome of fair coins, which one-run bounds need."""
        inside = int(self.membership.sum())
        return bool(binomtest(inside, len(self.scores)).pvalue >= _UNFAIR)

    @property
    def _profile(self) -> tuple[tuple[float, float], ...]:
        return self.claimed.profile if isinstance(self.claimed, Claim) else ()

    @property
    def _share(self) -> float:
        """Each bound's part of alpha."""
        one_run_bounds = (2 + bool(self._profile)) * int(self.fair_coins)
        return self.alpha / (int(self.trials == "independent") + one_run_bounds or 1)

    @cached_property
    def epsilons(self) -> tuple[EpsilonLower, ...]:
        """Lower limits on ε. The bounds share `alpha`, so the largest of them is a bound too."""
        independent = self.trials == "independent"
        share = self._share
        out: list[EpsilonLower] = []
        if self.fair_coins:
            out += [
                one_run(self.scores, self.membership, self.delta, share, self.unit),
                one_run_f_dp(self.scores, self.membership, self.delta, share, self.unit),
            ]
            if self.delta:
                out.append(
                    one_run_f_dp(
                        self.scores,
                        self.membership,
                        self.delta,
                        self.alpha,
                        self.unit,
                        gaussian=True,
                    )
                )
        pooled = clopper_pearson_bonferroni(self.members, self.others, self.delta, share, self.unit)
        if not independent:
            # Examples of one run influence each other, and each has odds of its own.
            pooled = replace(pooled, kind=Kind.ESTIMATE)
        out.append(pooled)
        if self.delta:
            out.append(gaussian_dp(self.members, self.others, self.delta, self.alpha, self.unit))
        return tuple(out)

    @property
    def epsilon_lower(self) -> float | None:
        """The largest bound, right with confidence 1 − alpha; None where none applies."""
        bounds = [one.value for one in self.epsilons if one.kind is Kind.BOUND]
        return max(bounds, default=None)

    @cached_property
    def profile_refuted(self) -> bool:
        """Whether one run refutes the profile that came with the claim; False without one."""
        if not self._profile or not self.fair_coins:
            return False
        return refutes_profile(self.scores, self.membership, self._profile, self._share)

    @property
    def refuted(self) -> bool | None:
        """Whether a bound exceeds the claim or its profile; None without a claim or a bound."""
        if not isinstance(self.claimed, Claim) or self.epsilon_lower is None:
            return None
        return self.epsilon_lower > self.claimed.epsilon or self.profile_refuted

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the scores, as JSON takes it."""
        return {
            "vantage": self.vantage,
            "attack": self.attack,
            "unit": str(self.unit),
            "members": int(self.membership.sum()),
            "non_members": int((~self.membership).sum()),
            "confidence": 1 - self.alpha,
            "auc": self.auc.value,
            "auc_low": self.auc.low,
            "auc_high": self.auc.high,
            "advantage": self.curve.advantage,
            "tpr_at_fpr": [
                {
                    "fpr": one.fpr,
                    "tpr": one.tpr.value,
                    "low": one.tpr.low,
                    "high": one.tpr.high,
                    "resolved": one.resolved,
                }
                for one in self.tpr
            ],
            "epsilon_lower": self.epsilon_lower,
            "epsilons": [asdict(one) for one in self.epsilons],
            "claimed": self.claimed.to_dict() if isinstance(self.claimed, Claim) else None,
            "refuted": self.refuted,
        }

    def to_json(self) -> str:
        """Return `to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)


def audit_attacks(
    scores: Mapping[str, ArrayLike],
    membership: ArrayLike,
    *,
    unit: Unit | str = Unit.SAMPLE,
    claimed: Claim | tuple[float, float] | None = None,
    alpha: float = 0.05,
    trials: str = "one-run",
    clusters: ArrayLike | None = None,
    vantage: str = "",
) -> list[AuditResult]:
    """Audit several attacks, α split among them, so that the best may be picked in hindsight.

    Args:
        scores: Attack → scores of shape (n,).
        membership: Shape (n,), bool.
        unit: Whose presence was guessed.
        claimed: The claim to test.
        alpha: Chance that any of the intervals, or any bound, is wrong.
        trials: See `AuditResult`.
        clusters: See `AuditResult`.
        vantage: Where the attacks were made from.

    Returns:
        One result an attack, best AUC first.
    """
    results = [
        AuditResult(
            np.asarray(values),
            np.asarray(membership),
            unit=Unit(unit),
            claimed=claimed,
            alpha=alpha / len(scores),
            trials=trials,
            clusters=None if clusters is None else np.asarray(clusters),
            attack=name,
            vantage=vantage,
        )
        for name, values in scores.items()
    ]
    return sorted(results, key=lambda one: -one.auc.value)
