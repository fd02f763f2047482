"""The attacks on secure aggregation by name, each run for real against both protocols.

An attack returns whether the attacker got what it wanted. It is refused if it got nothing, or if
the honest side raised.
"""

from collections.abc import Callable
from dataclasses import dataclass

from secure.aggregation import LanePlan
from secure.errors import SecureError
from simulations.benchmarks import _attacks_ours as ours
from simulations.benchmarks import _attacks_theirs as theirs


@dataclass(frozen=True)
class Attack:
    """An attack by name: what was tried, and its run against either side."""

    name: str
    ours: Callable[[], bool]
    theirs: Callable[[], bool]


def refused(attack: Callable[[], bool]) -> bool:
    """Run an attack: True where the attacker got nothing.

    An error counts as a refusal only if it is one that the protocol raises on purpose.
    """
    try:
        return not attack()
    except (SecureError, ValueError, KeyError):
        return True


ATTACKS = (
    Attack(
        "both kinds of share",
        lambda: ours.unmask(members=(1, 2, 3, 4, 1, 2, 3, 4)),
        theirs.both_shares,
    ),
    Attack("duplicate survivors", lambda: ours.unmask(members=(1, 1, 2, 3)), theirs.duplicates),
    Attack("second unmask request", ours.second_unmask, theirs.second_unmask),
    Attack("keys swapped by the server", ours.swapped_keys, theirs.swapped_keys),
    Attack("made-up members", ours.sybil, theirs.sybil),
    Attack("repeated keys", ours.repeated_keys, theirs.repeated_keys),
    Attack("a round opened twice", ours.replayed_round, theirs.replayed_round),
    Attack(
        "threshold of one",
        lambda: ours.weaker(threshold=0.5),
        lambda: theirs.changed(threshold=1),
    ),
    Attack("cohort of two", ours.cohort_of_two, lambda: theirs.changed(count=2, threshold=2)),
    Attack(
        "modulus of two",
        lambda: ours.weaker(plan=LanePlan(1.0, 2, 16, 64)),
        lambda: theirs.changed(modulus=2),
    ),
    Attack("split survivor sets", ours.split_views, theirs.split_views),
    Attack("wrong share, unnamed", ours.wrong_share, theirs.wrong_share),
    Attack("NaN in an update", ours.nan, theirs.nan),
    Attack("dropout while sharing", ours.early_dropout, theirs.early_dropout),
    Attack("32-bit seed of a mask", ours.small_seed, theirs.small_seed),
    Attack("counts and metrics in clear", ours.plaintext, theirs.plaintext),
    Attack("secrets kept after the round", ours.kept_secrets, theirs.kept_secrets),
)
