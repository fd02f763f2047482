"""Repairs of what the trust audit finds, and with which protection each of them goes.

After training: `projections` (folded into the output layer by `fold`), `rerank`, `temperature`. In
training: `repairs`, `mixing` and `adversary`, by name in `making`; `loss_weights`. Before it:
`pseudonyms`, `duplicates`. `composition` refuses what doesn't go together.
"""

from fedvlm.mitigation.composition import COMPOSITION, require_composition

__all__ = ["COMPOSITION", "require_composition"]
