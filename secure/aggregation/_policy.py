"""The policy: what client and server agree on, and the floor below which a client refuses."""

import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from secure.aggregation._graph import COMPLETE_UP_TO, degree
from secure.aggregation._plan import LanePlan
from secure.errors import ParameterError, PolicyError

Mode = Literal["semi-honest", "active"]
Weighting = Literal["uniform", "examples"]
Update = Literal["weights", "delta"]
Clip = Literal["range", "norm", "none"]

LEAST_COHORT = 3
LEAST_HONEST = 3
LEAST_SUMMED = 2
MAX_WEIGHT = 1 << 20
_USUAL_WEIGHT = 10_000
# clients · weight · metric · 2^16 stays below 2^62, and one metric is worth at least 2^15:
# 2^11 · 2^20 · 2^15 · 2^16 = 2^62.
MAX_CLIENTS = 1 << 11
_METRIC_ROOM = 1 << 46
MAX_ROSTER = 1 << 20
_DENOMINATOR = 10_000
# The forms in which `to_fields` writes; anything else is refused before it is parsed.
_FRACTION = re.compile(r"\d{1,5}(/\d{1,5})?", re.ASCII)
_WORD = re.compile(r"[a-z-]{1,20}", re.ASCII)
_HEX_FLOAT = re.compile(r"0x[01]\.[0-9a-f]{1,13}p[+-]\d{1,4}", re.ASCII)


@dataclass(frozen=True)
class Sharing:
    """What a cohort's size implies.

    Attributes:
        neighbours: Members that each member shares secrets and masks with.
        threshold: Shares that give a secret back.
        quorum: Members whose inputs must be in a sum, and in active mode must sign for it.
    """

    neighbours: int
    threshold: int
    quorum: int


def _fraction(value: float | Fraction, name: str, low: float, high: float) -> Fraction:
    """Take a fraction exactly: client and server must round alike on every machine."""
    if not (math.isfinite(value) and low <= value <= high):
        raise ParameterError(f"{name} must be in [{low:g}, {high:g}], got {float(value):g}")
    return Fraction(value).limit_denominator(_DENOMINATOR)


@dataclass(frozen=True)
class Policy:
    """Terms of a secure sum. The server proposes one; each client holds its own as a floor.

    Attributes:
        plan: Quantisation and lanes; its bound is the range of a coordinate.
        mode: `active` holds against a server that lies (5 trips), `semi-honest` against one that
            only looks (4 trips).
        min_clients: Fewest clients whose inputs may be in a sum, at least 2; None for 3 more than
            the corrupt members of the roster. A cohort that starts has at least 3 members
            whatever is asked here.
        threshold: Fraction of the cohort that must stay to the end, over 1/2 and at most 1.
        corrupt: Fraction of the roster that may collude with the server, all of it in one cohort.
        dropout: Fraction of the cohort that may drop out; it sizes the graph over 64 clients.
        clip: `range` scales an update down until no coordinate is beyond the bound, `norm` until
            its L2 norm isn't, and both are counted in the sum; under `none` an update with a
            coordinate beyond the bound is left out of the mean.
        weighting: `examples` weighs by the number of examples, clamped at `max_weight`;
            `uniform` gives every client the same weight; None takes what the plan was made for:
            `examples`, unless it was made for integers or for a `max_weight` of 1.
        max_weight: Clamp on the number of examples, from 1 to 2^20; 0 takes what the plan was
            made for, or 10,000 where it was made for none.
        update: Whether the app replies with new `weights`, of which the difference is summed,
            or with a `delta`, which is summed as it is.
        roster: Members that `corrupt` is a fraction of; None takes the plan's clients, and each
            side puts its own roster's size in its place, where that is larger.

    Guarantees:
        In active mode, with at most `corrupt_members()` of the roster on its side, a server that
        deviates at will learns the sum over the members in the survivor set, at least
        `quorum(n)` and `min_clients` of them, and nothing else about an honest member's input.
        With the derived `min_clients` at least 3 of them are honest, whomever the server picks.
        Semi-honest mode promises this only for a server that follows the protocol.

    Raises:
        ParameterError: A value is out of range.

    Example:
        >>> policy = Policy(plan=LanePlan(bound=1.0, levels=1024, lane=16, clients=64))
        >>> policy.sharing(20)
        Sharing(neighbours=19, threshold=14, quorum=14)
        >>> policy.fewest
        9
    """

    plan: LanePlan
    mode: Mode = "active"
    min_clients: int | None = None
    threshold: float | Fraction = Fraction(2, 3)
    corrupt: float | Fraction = Fraction(1, 10)
    dropout: float | Fraction = Fraction(1, 10)
    clip: Clip | bool = "range"
    weighting: Weighting | None = None
    max_weight: int = 0
    update: Update = "weights"
    roster: int | None = None

    def __post_init__(self) -> None:
        """Check every range, and make the fractions exact."""
        if self.mode not in ("semi-honest", "active"):
            raise ParameterError(f"mode must be semi-honest or active, got {self.mode!r}")
        if self.weighting is None:
            weighed = self.plan.max_weight is not None and self.plan.max_weight > 1
            object.__setattr__(self, "weighting", "examples" if weighed else "uniform")
        if self.weighting not in ("uniform", "examples"):
            raise ParameterError(f"weighting must be uniform or examples, got {self.weighting!r}")
        if self.update not in ("weights", "delta"):
            raise ParameterError(f"update must be weights or delta, got {self.update!r}")
        if isinstance(self.clip, bool):
            object.__setattr__(self, "clip", "norm" if self.clip else "none")
        if self.clip not in ("range", "norm", "none"):
            raise ParameterError(f"clip must be range, norm or none, got {self.clip!r}")
        if self.max_weight == 0:
            object.__setattr__(self, "max_weight", self.plan.max_weight or _USUAL_WEIGHT)
        if not 1 <= self.max_weight <= MAX_WEIGHT:
            raise ParameterError(f"max_weight must be in [1, {MAX_WEIGHT}], got {self.max_weight}")
        if self.plan.clients > MAX_CLIENTS:
            raise ParameterError(
                f"counts and metrics are summed for up to {MAX_CLIENTS} clients, the plan allows "
                f"{self.plan.clients}"
            )
        if self.weighting == "examples" and self.max_weight > (self.plan.max_weight or MAX_WEIGHT):
            raise ParameterError(
                f"the plan meets its error for weights up to {self.plan.max_weight}, this policy "
                f"allows {self.max_weight}: give plan() the same max_weight"
            )
        if self.roster is not None and not 1 <= self.roster <= MAX_ROSTER:
            raise ParameterError(f"roster must be in [1, {MAX_ROSTER}], got {self.roster}")
        if self.min_clients is not None and not (
            LEAST_SUMMED <= self.min_clients <= self.plan.clients
        ):
            raise ParameterError(
                f"min_clients must be in [{LEAST_SUMMED}, {self.plan.clients}] "
                f"(the plan's clients), got {self.min_clients}"
            )
        for name, low, high in (("threshold", 0.5, 1), ("corrupt", 0, 0.5), ("dropout", 0, 0.5)):
            object.__setattr__(self, name, _fraction(getattr(self, name), name, low, high))

    @property
    def active(self) -> bool:
        """Whether the policy holds against a server that lies."""
        return self.mode == "active"

    @property
    def _members(self) -> int:
        return self.roster if self.roster is not None else self.plan.clients

    @property
    def fewest(self) -> int:
        """Fewest clients in a sum: `min_clients`, or what follows from the roster."""
        if self.min_clients is not None:
            return self.min_clients
        return max(LEAST_COHORT, math.floor(Fraction(self.corrupt) * self._members) + LEAST_HONEST)

    @property
    def max_metric(self) -> float:
        """Largest magnitude of a metric: what no sum of weighted metrics can overflow with."""
        return float(_METRIC_ROOM // (self.plan.clients * self.max_weight))

    def for_roster(self, members: int) -> "Policy":
        """Return these terms with nothing left open, for a roster of so many members."""
        wide = replace(self, roster=max(members, self.roster or 1))
        # A roster too corrupt for the plan's clients asks for more than there can be: `sharing`
        # then refuses every cohort.
        return replace(wide, min_clients=min(wide.fewest, self.plan.clients))

    def corrupt_members(self, members: int) -> int:
        """Return how many of a cohort may collude with the server: all the corrupt of the roster.

        The server picks the cohort, and would pick them.
        """
        return min(members, math.floor(Fraction(self.corrupt) * max(self._members, members)))

    def sharing(self, members: int) -> Sharing:
        """Size neighbourhoods and thresholds for a cohort.

        Args:
            members: Size of the cohort, from 1 to `plan.clients`.

        Raises:
            PolicyError: The cohort is too small or too large, or no threshold is safe for it.
        """
        least = max(LEAST_COHORT, self.fewest)
        if members < least:
            raise PolicyError(f"a cohort of {members} is below the least of {least} clients")
        if members > self.plan.clients:
            raise PolicyError(
                f"a cohort of {members} could overflow lanes planned for {self.plan.clients}"
            )
        corrupt = self.corrupt_members(members)
        # 2t > n + corrupt: two survivor sets can't both find a quorum of honest signers, and no
        # member's two secrets can both be given away.
        quorum = max(math.ceil(Fraction(self.threshold) * members), (members + corrupt) // 2 + 1)
        if quorum > members:
            raise PolicyError(f"no threshold is safe for {members} members of which {corrupt} lie")
        if members > COMPLETE_UP_TO:
            dropped = math.floor(Fraction(self.dropout) * members)
            sparse = degree(members, corrupt, dropped, self.active)
            if sparse is not None:
                return Sharing(sparse.neighbours, sparse.threshold, quorum)
        return Sharing(members - 1, quorum, quorum)

    def check(self, terms: "Policy") -> None:
        """Refuse terms that ask for less than this policy, or encode otherwise.

        Args:
            terms: What the server proposes.

        Raises:
            PolicyError: Naming the first term that is not acceptable.
        """
        for name in ("plan", "dropout", "clip", "weighting", "max_weight", "update"):
            mine, theirs = getattr(self, name), getattr(terms, name)
            if mine != theirs:
                raise PolicyError(f"the server's {name} is {theirs}; this client has {mine}")
        for name, which in (
            ("active", "active"),
            ("min_clients", "fewest"),
            ("threshold", "threshold"),
            ("corrupt", "corrupt"),
            ("roster", "_members"),
        ):
            mine, theirs = getattr(self, which), getattr(terms, which)
            if theirs < mine:
                raise PolicyError(f"the server's {name} is {theirs}, below this client's {mine}")

    def to_fields(self) -> dict[str, int | str]:
        """Flatten into numbers and text, for a message or a hash."""
        return {
            "bound": float(self.plan.bound).hex(),
            "levels": self.plan.levels,
            "lane": self.plan.lane,
            "clients": self.plan.clients,
            "mode": self.mode,
            "min_clients": self.fewest,
            "threshold": str(self.threshold),
            "corrupt": str(self.corrupt),
            "dropout": str(self.dropout),
            "clip": str(self.clip),
            "weighting": str(self.weighting),
            "max_weight": self.max_weight,
            "update": self.update,
            "roster": self._members,
        }

    @classmethod
    def from_fields(cls, fields: dict) -> "Policy":
        """Rebuild a policy from `to_fields`; anything else is refused.

        Raises:
            PolicyError: The fields are not a policy.
        """
        text = {
            "bound": _HEX_FLOAT,
            "mode": _WORD,
            "threshold": _FRACTION,
            "corrupt": _FRACTION,
            "dropout": _FRACTION,
            "clip": _WORD,
            "weighting": _WORD,
            "update": _WORD,
        }
        for name, value in fields.items():
            form = text.get(name)
            if type(value) is not (int if form is None else str):
                raise PolicyError("the server's terms have values of a wrong type")
            if form is not None and not form.fullmatch(str(value)):
                raise PolicyError(f"the server's {name[:20]} is not in the form of a policy")
        try:
            lanes = LanePlan(
                float.fromhex(fields["bound"]),
                fields["levels"],
                fields["lane"],
                fields["clients"],
            )
            policy = cls(
                plan=lanes,
                mode=fields["mode"],
                min_clients=fields["min_clients"],
                threshold=Fraction(fields["threshold"]),
                corrupt=Fraction(fields["corrupt"]),
                dropout=Fraction(fields["dropout"]),
                clip=fields["clip"],
                weighting=fields["weighting"],
                max_weight=fields["max_weight"],
                update=fields["update"],
                roster=fields["roster"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise PolicyError(
                f"the server's terms are not a policy ({type(error).__name__})"
            ) from None
        if policy.to_fields() != fields:
            raise PolicyError("the server's terms are not in canonical form")
        return policy
