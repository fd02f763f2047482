"""Fairness, robustness and safety of a model before and after a protection.

Measures are pure functions on embeddings, scores and labels. `audit_trust` reads all of them off a
run beside zero-shot; docs/trust.md says what each number means, and what can't be claimed.
"""

from fedvlm.trust.contrasts import holm, over_seeds, paired, tost, unpaired
from fedvlm.trust.estimate import MIN_ROWS, Estimate, UnresolvedError

__all__ = [
    "MIN_ROWS",
    "Estimate",
    "UnresolvedError",
    "holm",
    "over_seeds",
    "paired",
    "tost",
    "unpaired",
]
