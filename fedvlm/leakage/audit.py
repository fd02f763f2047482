"""The result of one attack: scores, who was in, and all that may be said from them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedvlm.errors import ConfigError
from fedvlm.leakage.clusters import Clustered, cluster_auc, cluster_tpr
from fedvlm.leakage.coins import COINS, Coins, examine
from fedvlm.leakage.epsilon import clopper_pearson_bonferroni, gaussian_dp
from fedvlm.leakage.inputs import as_claim, as_clusters, as_coins, as_vector
from fedvlm.leakage.intervals import auc_interval
from fedvlm.leakage.one_run import one_run, one_run_f_dp, refutes_profile
from fedvlm.leakage.roc import FPRS, Roc, TprAtFpr, roc, tpr_at_fpr
from fedvlm.leakage.units import Claim, EpsilonLower, Interval, Kind, Unit

TRIALS = ("one-run", "independent")
_DELTA = 1e-5
_BAND = 24  # points of a drawn ROC
_LOSSES = 0.5  # an AUC that is surely below this has its sign wrong


@dataclass(frozen=True, eq=False)
class AuditResult:
    """Scores of an attack on any model, and what they show.

    Attributes:
        scores: Shape (n,), finite, higher where the attacker believes "member". Arrays, sequences
            and torch tensors of any kind; kept as float64.
        membership: Shape (n,), bool; both kinds occur.
        unit: Whose presence was guessed: "sample" or "client".
        claimed: The claim to test, or None: (epsilon, delta) at the audit's unit, a mapping with
            epsilon, delta and perhaps unit, JSON of either, or a `Claim`; kept as a `Claim`.
        alpha: One less the confidence of every interval, in (0, 0.5).
        trials: "one-run" where the scores come from one trained model: only the one-run
            estimators are then bounds. "independent" where each score has a run of its own.
        clusters: Shape (n,), client or run of each score, whole numbers or names, where scores of
            one move together; AUC and TPR then get intervals over clusters, which are wide, up to
            [0, 1], with few. Where each cluster is in or out as a whole, the coin is the cluster's,
            and bounds at client level count one guess a cluster.
        coins: "tested": nothing is known of the coins but the membership, and the bounds pay for
            the bias that it can't exclude. "fair": whoever audits threw fair and independent coins.
        attack: Name of the attack.
        vantage: Name of the vantage, or empty.

    Guarantees:
        `refuted` is True with chance at most `alpha` where the claim holds, the coins are
        independent between scores (or clusters), and of one bias, or fair where `coins` says so.

    Raises:
        ConfigError: Shapes differ, a score isn't finite, one kind is missing, or the claim has no
            form that is known, or is at another unit than the audit.

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
    claimed: Any = None
    alpha: float = 0.05
    trials: str = "one-run"
    clusters: NDArray[np.int64] | None = None
    attack: str = "scores"
    vantage: str = ""
    coins: str = "tested"

    def __post_init__(self) -> None:
        try:
            unit = Unit(self.unit)
        except ValueError as error:
            raise ConfigError(f"unit must be sample or client; got {self.unit!r}") from error
        if (
            isinstance(self.alpha, bool)
            or not isinstance(self.alpha, Real)
            or not 0 < self.alpha < 0.5
        ):
            raise ConfigError(f"alpha must be in (0, 0.5); got {self.alpha!r}")
        for name, allowed in (("trials", TRIALS), ("coins", COINS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}"
                )
        scores = as_vector(self.scores, "scores")
        inside = as_coins(self.membership, len(scores))
        clusters = None if self.clusters is None else as_clusters(self.clusters, len(scores))
        for name, value in (
            ("scores", scores),
            ("membership", inside),
            ("unit", unit),
            ("clusters", clusters),
            ("claimed", as_claim(self.claimed, unit)),
        ):
            object.__setattr__(self, name, value)

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
    def _clustered(self) -> Clustered | None:
        if self.clusters is None:
            return None
        return Clustered(self.scores, self.membership, self.clusters)

    @cached_property
    def auc(self) -> Interval:
        """Area under the ROC: DeLong's interval, or one over clusters."""
        if self._clustered is None:
            return auc_interval(self.members, self.others, self.alpha)
        return cluster_auc(self._clustered, self.alpha)

    @cached_property
    def tpr(self) -> tuple[TprAtFpr, ...]:
        """TPR at FPR 10 %, 1 % and 0.1 %."""
        return self.rates_at(FPRS)

    def rates_at(self, fprs: Sequence[float]) -> tuple[TprAtFpr, ...]:
        """Return the TPR at each of some false-positive rates in (0, 1), intervals pointwise."""
        exact = tuple(tpr_at_fpr(self.members, self.others, fpr, self.alpha) for fpr in fprs)
        if self._clustered is None:
            return exact
        out = []
        for one in exact:
            low, high = cluster_tpr(self._clustered, one.fpr, self.alpha)
            wide = replace(one.tpr, low=min(low, one.tpr.low), high=max(high, one.tpr.high))
            out.append(replace(one, tpr=wide, resolved=one.resolved and (low, high) != (0.0, 1.0)))
        return tuple(out)

    def band(self) -> list[list[float]]:
        """Return the ROC at rates that are evenly apart on a logarithmic axis.

        From one false positive among the non-members upwards: FPR, TPR, and the ends of the TPR's
        interval, which holds at each point by itself.
        """
        fprs = np.geomspace(1 / len(self.others), 1, _BAND)[:-1].tolist()
        rates = self.rates_at(fprs)
        told = [[one.fpr, one.tpr.value, one.tpr.low, one.tpr.high] for one in rates]
        return [*told, [1.0, 1.0, 1.0, 1.0]]

    @property
    def delta(self) -> float:
        """The claim's delta, or 1e-5."""
        return self.claimed.delta if isinstance(self.claimed, Claim) else _DELTA

    @cached_property
    def _coins(self) -> Coins:
        clusters = self.clusters
        found = examine(self.scores, self.membership, clusters, self.alpha, self.coins)
        if found.grouped and self.unit is Unit.SAMPLE and not found.refused:
            why = (
                "one coin decided over several examples: a bound would be on the epsilon of a "
                "whole cluster; audit it with unit = 'client'"
            )
            return replace(found, refused=why)
        return found

    @property
    def no_bound(self) -> str:
        """Why membership isn't what one-run bounds need, in words; empty where it is."""
        return self._coins.refused

    @property
    def fair_coins(self) -> bool:
        """Whether membership can be the outcome of independent coins, fair as far as is known."""
        return not self._coins.refused

    @property
    def hint(self) -> str:
        """What is likely to be wrong with the scores, in words; empty where nothing is."""
        if self.auc.high < _LOSSES:
            return (
                f"AUC {self.auc.value:.2f}: scores are lower for members; if they are losses or "
                "distances, hand over their negatives"
            )
        return ""

    @property
    def _profile(self) -> tuple[tuple[float, float], ...]:
        return self.claimed.profile if isinstance(self.claimed, Claim) else ()

    @property
    def _share(self) -> float:
        """Each bound's part of alpha."""
        one_run_bounds = (2 + bool(self._profile)) * int(self.fair_coins)
        return self._coins.alpha / (int(self._independent) + one_run_bounds or 1)

    @property
    def _independent(self) -> bool:
        """Whether a trial can be counted as one: scores of one cluster aren't independent."""
        return self.trials == "independent" and (
            self._clustered is None or len(self._clustered.sizes) == len(self.scores)
        )

    @cached_property
    def epsilons(self) -> tuple[EpsilonLower, ...]:
        """Lower limits on ε. The bounds share `alpha`, so the largest of them is a bound too."""
        share, coins = self._share, self._coins
        scores, inside, delta, unit = coins.scores, coins.inside, self.delta, self.unit
        out: list[EpsilonLower] = []
        if self.fair_coins:
            out += [
                one_run(scores, inside, delta, share, unit, coins.odds),
                one_run_f_dp(scores, inside, delta, share, unit, odds=coins.odds),
            ]
            if delta:
                wide = one_run_f_dp(
                    scores, inside, delta, coins.alpha, unit, gaussian=True, odds=coins.odds
                )
                out.append(wide)
        pooled = clopper_pearson_bonferroni(self.members, self.others, delta, share, unit)
        if not self._independent:
            # Examples of one run influence each other, and each has odds of its own.
            pooled = replace(pooled, kind=Kind.ESTIMATE)
        out.append(pooled)
        if delta:
            out.append(gaussian_dp(self.members, self.others, delta, self.alpha, unit))
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
        coins = self._coins
        return refutes_profile(coins.scores, coins.inside, self._profile, self._share, coins.odds)

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
            "no_bound": self.no_bound or None,
            "hint": self.hint or None,
        }

    def to_json(self) -> str:
        """Return `to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)


def audit_attacks(
    scores: Mapping[str, Any],
    membership: Any,
    *,
    unit: Unit | str = Unit.SAMPLE,
    claimed: Any = None,
    alpha: float = 0.05,
    trials: str = "one-run",
    clusters: Any = None,
    vantage: str = "",
    coins: str = "tested",
) -> list[AuditResult]:
    """Audit several attacks, α split among them, so that the best may be picked in hindsight.

    Args:
        scores: Attack → scores of shape (n,).
        membership: Shape (n,), bool.
        unit: Whose presence was guessed.
        claimed: The claim to test; see `AuditResult`.
        alpha: Chance that any of the intervals, or any bound, is wrong.
        trials: See `AuditResult`.
        clusters: See `AuditResult`.
        vantage: Where the attacks were made from.
        coins: See `AuditResult`.

    Returns:
        One result an attack, best AUC first.

    Raises:
        ConfigError: There is no attack, or `AuditResult` refuses one's scores.
    """
    if not isinstance(scores, Mapping) or not scores:
        raise ConfigError(
            "scores must map the name of each attack to its scores, one attack at least; got "
            f"{'an empty mapping' if isinstance(scores, Mapping) else type(scores).__name__}"
        )
    results = [
        AuditResult(
            values,
            membership,
            unit=unit,  # pyright: ignore[reportArgumentType]
            claimed=claimed,
            alpha=alpha / len(scores) if isinstance(alpha, Real) else alpha,
            trials=trials,
            clusters=clusters,
            attack=str(name),
            vantage=vantage,
            coins=coins,
        )
        for name, values in scores.items()
    ]
    return sorted(results, key=lambda one: -one.auc.value)
