"""What accountants are told of releases that are no Gaussian ones."""

import math
from dataclasses import dataclass
from typing import Any

import dp_accounting

from fedvlm.errors import ConfigError, IntegrityError

# Denser where the best order of a small ε lies, sparse where that of a large budget does.
WHOLE = (*range(2, 64), 80, 128, 256, 512, 1024)
ORDERS = (1.25, 1.5, 1.75, 2.25, 2.5, 2.75, 3.25, 3.5, 3.75, 4.5, 5.5, 6.5, *WHOLE)


@dataclass(frozen=True)
class RenyiEvent(dp_accounting.DpEvent):
    """An event that is known by its Rényi divergence at each of `ORDERS`.

    Attributes:
        curve: The divergence at each order, in nats; same length as `ORDERS`.
        name: The mechanism's name, for messages.
    """

    curve: tuple[float, ...]
    name: str

    def __post_init__(self) -> None:
        if len(self.curve) != len(ORDERS) or not all(x >= 0 for x in self.curve):
            raise ConfigError(f"a Rényi curve has {len(ORDERS)} values that are at least 0")


@dataclass(frozen=True)
class SkellamEvent(dp_accounting.DpEvent):
    """Integers with Skellam noise on every coordinate, released once.

    Attributes:
        variance: Variance of the noise on a coordinate, positive.
        dimension: Number of coordinates d.
        norm: Largest L2 norm of what one unit adds, in integers.
    """

    variance: float
    dimension: int
    norm: float

    def __post_init__(self) -> None:
        sound = all(math.isfinite(x) and x > 0 for x in (self.variance, self.norm))
        if not sound or self.dimension < 1:
            raise ConfigError(
                f"Skellam noise needs a variance and a norm above 0 and a dimension of at least 1, "
                f"got {self.variance}, {self.norm} and {self.dimension}"
            )

    @property
    def curve(self) -> tuple[float, ...]:
        """The Rényi divergence at each of `ORDERS` (Agarwal et al. 2021, theorem 3.5)."""
        # An integer is at most its own square, and d of them are as the root of d at most.
        absolute = min(math.sqrt(self.dimension) * self.norm, self.norm**2)
        curve = []
        for order in ORDERS:
            # The theorem is for whole orders, and the divergence rises with the order.
            a = math.ceil(order)
            gap = min(
                ((2 * a - 1) * self.norm**2 + 6 * absolute) / (4 * self.variance**2),
                3 * absolute / (2 * self.variance),
            )
            curve.append(a * self.norm**2 / (2 * self.variance) + gap)
        return tuple(curve)


def event_to_json(event: dp_accounting.DpEvent) -> dict[str, Any]:
    """Write an event.

    Raises:
        ConfigError: It is of a kind that no mechanism here reports.
    """
    if isinstance(event, dp_accounting.GaussianDpEvent):
        return {"kind": "gaussian", "noise_multiplier": event.noise_multiplier}
    if isinstance(event, dp_accounting.PoissonSampledDpEvent):
        inner = event_to_json(event.event)
        return {"kind": "poisson", "rate": event.sampling_probability, "event": inner}
    if isinstance(event, RenyiEvent):
        return {"kind": "renyi", "name": event.name, "curve": list(event.curve)}
    if isinstance(event, SkellamEvent):
        law = {"variance": event.variance, "dimension": event.dimension, "norm": event.norm}
        return {"kind": "skellam"} | law
    raise ConfigError(f"a ledger can't keep an event of type {type(event).__name__}")


def event_from_json(data: dict[str, Any]) -> dp_accounting.DpEvent:
    """Read what `event_to_json` wrote.

    Raises:
        IntegrityError: It is no event, or one that no mechanism could have reported.
    """
    try:
        kind = data["kind"]
        if kind == "gaussian":
            multiplier = float(data["noise_multiplier"])
            if not (math.isfinite(multiplier) and multiplier > 0):
                raise ValueError("noise multiplier")
            return dp_accounting.GaussianDpEvent(multiplier)
        if kind == "poisson":
            rate = float(data["rate"])
            if not 0 < rate <= 1:
                raise ValueError("rate")
            return dp_accounting.PoissonSampledDpEvent(rate, event_from_json(data["event"]))
        if kind == "renyi":
            return RenyiEvent(tuple(map(float, data["curve"])), str(data["name"]))
        if kind == "skellam" and type(data["dimension"]) is int:
            return SkellamEvent(float(data["variance"]), data["dimension"], float(data["norm"]))
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError("the ledger holds an event that is none") from error
    raise IntegrityError("the ledger holds an event of an unknown kind")
