"""What is hidden by noise, and how well."""

from dataclasses import dataclass
from typing import ClassVar

from fedvlm.config._section import Section, setting


@dataclass(frozen=True)
class PrivacyConfig(Section):
    """Differential privacy as a run asks for it; a node's floor may ask for more."""

    table: ClassVar[str] = "privacy"

    dp: str = setting(
        "none",
        "none, example (clients train with DP-SGD), client (a trusted server noises the sum) or "
        "distributed (clients noise integers that only secure aggregation sums).",
        choices=("none", "example", "client", "distributed"),
    )
    noise: str = setting(
        "own",
        "Who hides an example under example-level DP: own (each client's noise alone does) or "
        "shared (each adds a share, and only secure aggregation's sum is seen).",
        choices=("own", "shared"),
    )
    epsilon: float = setting(
        8.0,
        "Budget that the noise is solved for, over all rounds.",
        low=0,
        high=1e6,
        above=True,
    )
    delta: float = setting(1e-5, "δ that it holds at.", low=0, high=1, above=True, below=True)
    clip_norm: float = setting(
        1.0,
        "L2 norm that an example's gradient or a client's update is clipped to.",
        low=0,
        high=1e9,
        above=True,
    )
    adaptive: bool = setting(
        False, "Whether the clip of client-level DP follows the median of the updates' norms."
    )
    weight_cap: int = setting(
        0,
        "Examples at which a client's weight under client-level DP is full: it weighs "
        "min(examples, cap) / cap, so that the clip stays the sensitivity; 0 weighs all alike.",
        low=0,
        high=2**31,
    )
    mean_pairs: int = setting(
        0,
        "The clients' mean number of pairs, a public fact that example-level DP is planned from; "
        "0 counts them, which only a simulation can.",
        low=0,
        high=2**31,
    )
    simulated_noise: bool = setting(
        False, "Draw noise from the seed, for experiments: reproducible, protects nobody."
    )

    @property
    def shares_noise(self) -> bool:
        """Whether clients add shares of noise to integers that only secure aggregation sums."""
        return self.dp == "distributed" or (self.dp == "example" and self.noise == "shared")
