"""The ledger: what was spent, for whom, and a budget that stops *before* it is overspent."""

import json
import math
from dataclasses import dataclass
from functools import total_ordering

import dp_accounting

from fedvlm.errors import BudgetExceeded, ConfigError, IntegrityError
from fedvlm.privacy.accounting import epsilon
from fedvlm.privacy.events import event_from_json, event_to_json
from fedvlm.privacy.mechanisms import Mechanism

# Slack for a budget that was solved for: bisection and discretisation end this close to it.
_SLACK = 1e-6


@total_ordering
@dataclass(frozen=True, eq=False)
class Epsilon:
    """ε at a δ, for one unit of privacy; use one of its two subclasses.

    Values of different units are never compared, and none is ever added: ε composes through a
    ledger, not through `+`.
    """

    value: float
    delta: float

    def _same(self, other: object) -> "Epsilon":
        if not isinstance(other, Epsilon):
            raise TypeError("an ε is compared with an ε of its own unit only")
        if type(other) is not type(self) or other.delta != self.delta:
            raise TypeError(
                f"{type(self).__name__} at delta={self.delta:g} can't be compared with "
                f"{type(other).__name__} at delta={other.delta:g}: they protect different things"
            )
        return other

    def __eq__(self, other: object) -> bool:
        return self.value == self._same(other).value

    def __lt__(self, other: object) -> bool:
        return self.value < self._same(other).value

    def __hash__(self) -> int:
        return hash((type(self), self.value, self.delta))


class ExampleEpsilon(Epsilon):
    """ε for one image–caption pair of a client.

    Example:
        >>> ExampleEpsilon(1.0, 1e-5) < ExampleEpsilon(2.0, 1e-5)
        True
    """


class ClientEpsilon(Epsilon):
    """ε for everything that one client holds."""


UNITS: dict[str, type[Epsilon]] = {"example": ExampleEpsilon, "client": ClientEpsilon}


class Ledger:
    """What one party has spent, against a budget.

    Args:
        unit: "example" or "client": whom ε protects.
        budget: Largest ε; infinite to record only.
        delta: δ in (0, 1) at which ε is computed.

    Guarantees:
        `spend` raises before a mechanism is recorded that would bring ε above the budget. A
        mechanism that runs only after its `spend` can't overspend, also across a resume
        from `to_json`.

    Example:
        >>> from fedvlm.privacy import GaussianMechanism
        >>> ledger = Ledger("client", budget=2.0, delta=1e-5)
        >>> ledger.spend(GaussianMechanism(sensitivity=1.0, noise_multiplier=4.0)).value < 2.0
        True
    """

    def __init__(self, unit: str, budget: float, delta: float) -> None:
        if unit not in UNITS:
            raise ConfigError(f"unit must be one of {', '.join(UNITS)}; got {unit!r}")
        if not budget > 0:
            raise ConfigError(f"a budget must be above 0, got {budget}")
        if not 0 < delta < 1:
            raise ConfigError(f"delta must be in (0, 1), got {delta}")
        self.unit = unit
        self.budget = budget
        self.delta = delta
        self._events: dict[dp_accounting.DpEvent, int] = {}

    def _cost(self, events: dict[dp_accounting.DpEvent, int]) -> float:
        return epsilon(list(events.items()), self.delta)

    @property
    def spent(self) -> Epsilon:
        """ε of all that was recorded."""
        return UNITS[self.unit](self._cost(self._events), self.delta)

    @property
    def history(self) -> list[tuple[dp_accounting.DpEvent, int]]:
        """Every event with the number of times that it happened."""
        return list(self._events.items())

    @property
    def releases(self) -> int:
        """Number of releases recorded."""
        return sum(self._events.values())

    def spend(self, mechanism: Mechanism, times: int = 1) -> Epsilon:
        """Record releases that are about to happen.

        Args:
            mechanism: What will be released.
            times: How often, at least 1.

        Returns:
            ε once they have happened.

        Raises:
            BudgetExceeded: ε would go above the budget; nothing was recorded.
        """
        if times < 1:
            raise ConfigError(f"a release happens at least once, got {times}")
        event = mechanism.event()
        after = {**self._events, event: self._events.get(event, 0) + times}
        cost = self._cost(after)
        # Written so that a NaN stops training too.
        if not cost <= self.budget * (1 + _SLACK):
            raise BudgetExceeded(
                f"{times} more release(s) would bring {self.unit}-level epsilon to {cost:.4g}, "
                f"over the budget of {self.budget:.4g} at delta={self.delta:g}; spent so far: "
                f"{self.spent.value:.4g}"
            )
        self._events = after
        return UNITS[self.unit](cost, self.delta)

    def to_json(self) -> str:
        """Write the ledger, so that a run that goes on can't forget what it spent."""
        events = [[event_to_json(event), count] for event, count in self._events.items()]
        budget = self.budget if math.isfinite(self.budget) else None
        return json.dumps(
            {"unit": self.unit, "budget": budget, "delta": self.delta, "events": events}
        )

    @classmethod
    def from_json(cls, text: str) -> "Ledger":
        """Read what `to_json` wrote.

        Raises:
            IntegrityError: The text is not a ledger.
        """
        try:
            data = json.loads(text)
            budget = math.inf if data["budget"] is None else float(data["budget"])
            ledger = cls(data["unit"], budget, float(data["delta"]))
            for event, count in data["events"]:
                if type(count) is not int or count < 1:
                    raise ValueError("count")
                key = event_from_json(event)
                # An event that stands twice happened both times.
                ledger._events[key] = ledger._events.get(key, 0) + count
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError("what should be a ledger is not one") from error
        return ledger
