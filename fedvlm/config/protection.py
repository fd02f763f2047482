"""What the server sees of an update."""

from dataclasses import dataclass
from typing import ClassVar

from fedvlm.config._section import Section, setting

SECURE = ("secagg", "secagg-active")
COMPRESSIONS = ("none", "mask", "rounding")


@dataclass(frozen=True)
class ProtectionConfig(Section):
    """How updates are summed, and what of them is sent."""

    table: ClassVar[str] = "protection"

    protect: str = setting(
        "plain",
        "How updates are summed: plain; secagg (the server sees the sum alone, if it follows the "
        "protocol); secagg-active (also if it doesn't); he (sums under encryption: the clients "
        "share one key and must not collude with the server).",
        choices=("plain", *SECURE, "he"),
    )
    update_bound: float = setting(
        1.0,
        "Largest change of a parameter in a round under secagg and he; a client whose update is "
        "beyond it refuses to send.",
        low=0,
        high=1e6,
        above=True,
    )
    min_clients: int = setting(
        0,
        "Fewest clients in a sum under secure aggregation, for nodes whose floor asks for more "
        "than the quorum that follows from the cohort; 0 takes that.",
        low=0,
        high=100_000,
    )
    compression: str = setting(
        "none",
        "none, mask (a share of the coordinates a round, drawn by the public seed) or rounding "
        "(few bits a coordinate under secure aggregation, rounded at random).",
        choices=COMPRESSIONS,
    )
    kept: float = setting(
        0.25, "Share of the coordinates that a mask keeps.", low=0, high=1, above=True
    )
    rounding_bits: int = setting(
        8, "Bits of an update's coordinate within update_bound under rounding.", low=2, high=24
    )

    @property
    def secure(self) -> bool:
        """Whether secure aggregation sums."""
        return self.protect in SECURE
