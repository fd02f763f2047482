"""The policy: what client and server agree on, and the floor below which a client refuses."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from secure.aggregation._graph import COMPLETE_UP_TO, degree
from secure.aggregation._plan import LanePlan
from secure.errors import ParameterError, PolicyError

Mode = Literal["semi-honest", "active"]
Weighting = Literal["uniform", "examples"]
Update = Literal["weights", "delta"]

LEAST_COHORT = 3
LEAST_SUMMED = 2
MAX_WEIGHT = 1 << 20
_DENOMINATOR = 10_000


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
        plan: Quantisation and lanes; its bound is the clip norm.
        mode: `active` holds against a server that lies (5 trips), `semi-honest` against one that
            only looks (4 trips).
        min_clients: Fewest clients whose inputs may be in a sum, at least 2. A cohort that
            starts has at least 3 members whatever is asked here.
        threshold: Fraction of the cohort that must stay to the end, over 1/2 and at most 1.
        corrupt: Fraction of the cohort that may collude with the server.
        dropout: Fraction of the cohort that may drop out; it sizes the graph over 64 clients.
        clip: Whether an update is scaled down to the L2 norm `plan.bound`; if not, one with a
            coordinate beyond the bound is refused.
        weighting: `uniform` gives every client the same weight; `examples` weighs by the number
            of examples, clamped at `max_weight`.
        max_weight: Clamp on the number of examples, from 1 to 2^20.
        update: Whether the app replies with new `weights`, of which the difference is summed,
            or with a `delta`, which is summed as it is.

    Guarantees:
        In active mode, with at most ⌊corrupt · n⌋ of the n members of the cohort on its side, a
        server that deviates at will learns the sum over the members in the survivor set, at
        least `quorum(n)` and `min_clients` of them, and nothing else about an honest member's
        input. Semi-honest mode promises this only for a server that follows the protocol.

    Raises:
        ParameterError: A value is out of range.

    Example:
        >>> policy = Policy(plan=LanePlan(bound=1.0, levels=1024, lane=16, clients=64))
        >>> policy.sharing(10)
        Sharing(neighbours=9, threshold=7, quorum=7)
    """

    plan: LanePlan
    mode: Mode = "active"
    min_clients: int = LEAST_COHORT
    threshold: float | Fraction = Fraction(2, 3)
    corrupt: float | Fraction = Fraction(1, 10)
    dropout: float | Fraction = Fraction(1, 10)
    clip: bool = True
    weighting: Weighting = "uniform"
    max_weight: int = 10_000
    update: Update = "weights"

    def __post_init__(self) -> None:
        """Check every range, and make the fractions exact."""
        if self.mode not in ("semi-honest", "active"):
            raise ParameterError(f"mode must be semi-honest or active, got {self.mode!r}")
        if self.weighting not in ("uniform", "examples"):
            raise ParameterError(f"weighting must be uniform or examples, got {self.weighting!r}")
        if self.update not in ("weights", "delta"):
            raise ParameterError(f"update must be weights or delta, got {self.update!r}")
        if not 1 <= self.max_weight <= MAX_WEIGHT:
            raise ParameterError(f"max_weight must be in [1, {MAX_WEIGHT}], got {self.max_weight}")
        if not LEAST_SUMMED <= self.min_clients <= self.plan.clients:
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

    def corrupt_members(self, members: int) -> int:
        """Return how many of a cohort may collude with the server."""
        return math.floor(Fraction(self.corrupt) * members)

    def sharing(self, members: int) -> Sharing:
        """Size neighbourhoods and thresholds for a cohort.

        Args:
            members: Size of the cohort, from 1 to `plan.clients`.

        Raises:
            PolicyError: The cohort is too small or too large, or no threshold is safe for it.
        """
        least = max(LEAST_COHORT, self.min_clients)
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
        for name in ("active", "min_clients", "threshold", "corrupt"):
            mine, theirs = getattr(self, name), getattr(terms, name)
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
            "min_clients": self.min_clients,
            "threshold": str(self.threshold),
            "corrupt": str(self.corrupt),
            "dropout": str(self.dropout),
            "clip": int(self.clip),
            "weighting": self.weighting,
            "max_weight": self.max_weight,
            "update": self.update,
        }

    @classmethod
    def from_fields(cls, fields: dict) -> "Policy":
        """Rebuild a policy from `to_fields`; anything else is refused.

        Raises:
            PolicyError: The fields are not a policy.
        """
        text = {"bound", "mode", "threshold", "corrupt", "dropout", "weighting", "update"}
        if any(type(value) is not (str if name in text else int) for name, value in fields.items()):
            raise PolicyError("the server's terms have values of a wrong type")
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
                clip=bool(fields["clip"]),
                weighting=fields["weighting"],
                max_weight=fields["max_weight"],
                update=fields["update"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise PolicyError(
                f"the server's terms are not a policy ({type(error).__name__})"
            ) from None
        if policy.to_fields() != fields:
            raise PolicyError("the server's terms are not in canonical form")
        return policy
