"""Audit a run: guards first, then every attack that each vantage affords."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fedvlm.errors import ProtocolError
from fedvlm.federation.answering_task import AnsweringTask
from fedvlm.federation.result import Result
from fedvlm.federation.task import Progress, Task, load_task, quiet
from fedvlm.leakage.answer_attacks import ANSWER_ATTACKS
from fedvlm.leakage.answer_probe import AnswerProbe
from fedvlm.leakage.attacks import ATTACKS
from fedvlm.leakage.audit import AuditResult, audit_attacks
from fedvlm.leakage.canary_audit import CanaryAudit, audit_canaries
from fedvlm.leakage.intervals import auc_interval
from fedvlm.leakage.probe import Candidates, Probe, candidates_of, distinct
from fedvlm.leakage.reconstruction import Rebuilt, reconstruct
from fedvlm.leakage.run_checks import RunChecks, check_run
from fedvlm.leakage.shadow_attacks import shadow_scores
from fedvlm.leakage.units import Claim, Interval, Unit
from fedvlm.leakage.vantage import Vantage, View, WrongVantageError, run_config

GUARD_ALPHA = 1e-3
"""Chance that the blind baseline refuses an honest split."""
# Coins are thrown by pair, so intervals over pairs hold for the clients of this run. With as many
# clients as this, others like them are spoken for too.
_CLUSTERS = 20


class LeakySplitError(ProtocolError):
    """Members and non-members differ before any training: an audit would measure that."""


def blind_baseline(
    probe: Probe | AnswerProbe, candidates: Candidates, initial: np.ndarray
) -> Interval:
    """Return the AUC of the untouched backbone's confidence, which must cover 0.5.

    Raises:
        LeakySplitError: It doesn't, at confidence 99.9 %: members can be told from non-members
            without the model that was trained on them.
    """
    values = probe.confidence(initial, candidates.indices)
    inside = candidates.membership
    found = auc_interval(values[inside], values[~inside], GUARD_ALPHA)
    if not found.covers(0.5):
        raise LeakySplitError(
            f"the untouched backbone tells members from non-members (AUC {found}): the split "
            "is not i.i.d., and an audit of it would measure the split"
        )
    return found


@dataclass(frozen=True, eq=False)
class RunAudit:
    """Every attack from every vantage on one run.

    Attributes:
        results: Best attack first within each vantage, vantages in order.
        absent: Vantage → why there is no view of it.
        baseline: AUC of the untouched backbone, with a 99.9 % interval.
        claim: The run's claim, or None without DP.
        identity: Seed, fingerprints of backbone and schema, without DP also of data, splits and
            negatives; and who decrypts, where sums are encrypted.
        alpha: Chance, for each vantage, that any of its figures is wrong.
        canaries: What the run's planted canaries show; None where it planted none.
        reconstructions: What could be rebuilt of the pairs, vantage by vantage.
        checks: What the transcript says of a mechanism that the run states; None without DP.
    """

    results: list[AuditResult]
    absent: dict[str, str]
    baseline: Interval
    claim: Claim | None
    identity: dict[str, Any]
    alpha: float
    canaries: CanaryAudit | None = None
    reconstructions: tuple[Rebuilt, ...] = ()
    checks: RunChecks | None = None

    @property
    def best(self) -> list[AuditResult]:
        """The attack of the highest AUC from each vantage."""
        firsts: dict[str, AuditResult] = {}
        for one in self.results:
            firsts.setdefault(one.vantage, one)
        return list(firsts.values())

    @property
    def refuted(self) -> bool:
        """Whether a bound exceeds the run's claim, or the run isn't what it states.

        α is split over attacks, canaries and checks, and the attacks' part over the vantages.
        """
        parts = 1 + (self.canaries is not None) + (self.checks is not None)
        if self.checks is not None and self.checks.violated:
            return True
        if self.canaries is not None and self.canaries.refuted:
            return True
        parts *= len({one.vantage for one in self.results})
        return any(replace(one, alpha=one.alpha / parts).refuted for one in self.results)

    def rows(self) -> list[dict[str, Any]]:
        """Return the entry `leakage` of a result."""
        return [one.to_dict() for one in self.results]

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as JSON takes it."""
        return {
            "rows": self.rows(),
            "absent": self.absent,
            "roc": [
                {"vantage": one.vantage, "attack": one.attack, "points": one.band()}
                for one in self.best
            ],
            "blind_baseline": {
                "auc": self.baseline.value,
                "low": self.baseline.low,
                "high": self.baseline.high,
                "confidence": self.baseline.confidence,
            },
            "claim": self.claim and self.claim.to_dict(),
            "canaries": self.canaries and self.canaries.to_dict(),
            "checks": self.checks and self.checks.to_dict(),
            "reconstructions": [asdict(one) for one in self.reconstructions],
            "refuted": self.refuted,
            "confidence": 1 - self.alpha,
            "identity": self.identity,
        }


def claim_of(result: Result) -> Claim | None:
    """Return the epsilon that a run claims, with its unit; None without DP."""
    privacy = result.privacy
    if not privacy or privacy.get("epsilon") is None:
        return None
    unit = Unit.CLIENT if "client" in str(privacy.get("unit")) else Unit.SAMPLE
    return Claim(float(privacy["epsilon"]), float(privacy["delta"]), unit)


def audit_run(
    folder: Path,
    *,
    per_client: int = 200,
    alpha: float = 0.05,
    vantages: tuple[Vantage, ...] = tuple(Vantage),
    rebuild: bool = True,
    progress: Progress = quiet,
) -> RunAudit:
    """Audit the run in a folder by sample-level membership inference.

    Args:
        folder: Of a run with transcript = true and membership = "half".
        per_client: Candidates a client, members and non-members together.
        alpha: Chance, for each vantage, that any interval or bound of it is wrong; split among
            the attacks of that vantage.
        vantages: Which to try.
        rebuild: Whether to try reconstruction too.
        progress: Called with (task, done, total).

    Returns:
        The audit. A claim at sample level is tested at every vantage, since the clients' own
        noise comes before anybody looks; one at client level isn't comparable with these attacks.

    Raises:
        ConfigError: The run kept no transcript or has no i.i.d. non-members.
        LeakySplitError: The split is told apart without the trained model.
    """
    config, result = run_config(folder), Result.load(folder)
    # Attacks are computed on the CPU in float32, wherever the run was.
    here = replace(config.training, device="cpu", dtype="float32")
    task = load_task(replace(config, training=here), progress)
    candidates = distinct(task, candidates_of(task, per_client))
    answers = isinstance(task, AnsweringTask)
    probe = AnswerProbe(task) if answers else Probe(task)
    claim = claim_of(result)
    baseline = blind_baseline(probe, candidates, View.from_run(folder, Vantage.V5).initial)
    testable = claim if claim is not None and claim.unit is Unit.SAMPLE else None
    progress("shadows", 0, 1)
    shadows: dict[str, np.ndarray] = {}
    if isinstance(probe, Probe) and len(probe.population):
        # The released adapter is the same for all who hold it: calibrate it once.
        shadows = shadow_scores(View.from_run(folder, Vantage.V4), probe, candidates)
    results, absent = [], {}
    for number, vantage in enumerate(vantages):
        progress("audit", number, len(vantages))
        try:
            view = View.from_run(folder, vantage)
        except WrongVantageError as error:
            absent[str(vantage)] = str(error)
            continue
        who = candidates.without(view.attacker)
        found = {
            attack.name: attack(view, probe, who)  # pyright: ignore[reportArgumentType]
            for attack in (ANSWER_ATTACKS if answers else ATTACKS)
            if attack.available(view) and _possible(attack.name, probe)
        }
        if view.released is not None:
            kept = candidates.clients != (-1 if view.attacker is None else view.attacker)
            found |= {name: values[kept] for name, values in shadows.items()}
        many = len(np.unique(who.clients)) >= _CLUSTERS
        results += audit_attacks(
            found,
            who.membership,
            unit=Unit.SAMPLE,
            claimed=testable,
            alpha=alpha,
            clusters=who.clients if many else None,
            vantage=str(vantage),
            coins="fair",  # the experiment's, thrown by the split
        )
    planted = None
    stated = config.privacy.dp != "none" and claim is not None
    share = alpha / (1 + bool(config.audit.canaries) + stated)
    if config.audit.canaries:
        progress("canaries", 0, 1)
        planted = audit_canaries(folder, config, task.view.size, claim, share)
    progress("checks", 0, 1)
    checks = check_run(folder, config, result, share) if stated else None
    progress("reconstruction", 0, 1)
    # Nothing is rebuilt of answers: what they give away word for word, canary strings tell.
    rebuilt = ()
    if rebuild and isinstance(probe, Probe):
        rebuilt = reconstruct(folder, probe, candidates, vantages, alpha)
    identity = _identity(task, probe) | {
        "candidates": len(candidates.indices),
        "decrypted_by": result.protection["parameters"].get("trust"),
    }
    return RunAudit(results, absent, baseline, claim, identity, alpha, planted, rebuilt, checks)


def _identity(task: Task, probe: Probe | AnswerProbe) -> dict[str, Any]:
    """Name what was audited. Under DP without its data: a hash of them confirms a guess."""
    config = task.config
    public = {
        "seed": config.training.seed,
        "model": config.model.name,
        "backbone": _backbone_hash(task.model.vlm),
        "schema": task.view.schema,
    }
    if config.privacy.dp != "none":
        return public
    return public | {
        "data": task.data.fingerprint,
        "splits": task.splits.fingerprint,
        "negatives": probe.negatives_hash,
    }


def _backbone_hash(vlm: nn.Module) -> str:
    """Return SHA-256 of the parameters that nobody trains, in hex."""
    digest = hashlib.sha256()
    for name, value in sorted(vlm.named_parameters()):
        if not value.requires_grad:
            digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _possible(name: str, probe: Probe | AnswerProbe) -> bool:
    """Return whether the model and the data allow an attack at all."""
    if name == "aea":
        return probe.task.model.name == "embedded"
    if name == "fed-mia":
        return probe.task.config.data.clients >= 3
    return name not in ("attack-p", "rmia") or len(probe.population) > 0
