"""What leaks: attacks by vantage point, and statistics that say how sure one may be.

Nothing heavy is imported here: `AuditResult` works on scores from any model. The attacks on a
run are in `fedvlm.leakage.audit_run`, the shadows in `fedvlm.leakage.shadows`.
"""

from fedvlm.canaries import Canaries
from fedvlm.leakage.audit import AuditResult, audit_attacks
from fedvlm.leakage.canaries import andrew_estimate, exposure, recall_gap
from fedvlm.leakage.clusters import Clustered, cluster_auc, cluster_tpr
from fedvlm.leakage.epsilon import (
    clopper_pearson_bonferroni,
    clopper_pearson_split,
    gaussian_dp,
    gaussian_epsilon,
)
from fedvlm.leakage.intervals import auc_interval, auc_of, cluster_bootstrap
from fedvlm.leakage.one_run import one_run, one_run_f_dp
from fedvlm.leakage.roc import Roc, TprAtFpr, roc, tpr_at_fpr
from fedvlm.leakage.units import Claim, EpsilonLower, Interval, Kind, Unit

__all__ = [
    "AuditResult",
    "Canaries",
    "Claim",
    "Clustered",
    "EpsilonLower",
    "Interval",
    "Kind",
    "Roc",
    "TprAtFpr",
    "Unit",
    "andrew_estimate",
    "auc_interval",
    "auc_of",
    "audit_attacks",
    "clopper_pearson_bonferroni",
    "clopper_pearson_split",
    "cluster_auc",
    "cluster_bootstrap",
    "cluster_tpr",
    "exposure",
    "gaussian_dp",
    "gaussian_epsilon",
    "one_run",
    "one_run_f_dp",
    "recall_gap",
    "roc",
    "tpr_at_fpr",
]
