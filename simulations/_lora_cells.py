"""FFA-LoRA in the utility table: whole federations, by the library's own `simulate`."""

from typing import Any

from fedvlm.config import Config, config_from
from fedvlm.federation import simulate

PARTS = ("test", "ood", "withheld")
# What follows was chosen on seeds 100 and 101, which are in no table. A is frozen, so that noise
# enters the product B·A once and not squared.
COMMON: dict[str, Any] = {
    "adapter": "ffa-lora",
    "rank": 64,
    "lora_alpha": 128,
    "rounds": 5,
    "local_epochs": 2,
    "references": False,
    "workers": 1,
}
# A client takes two steps of its whole data in a round.
EXAMPLE: dict[str, Any] = {"dp": "example", "clip_norm": 1.0, "batch_size": 256}
# Adam moves each coordinate by the rate, whatever the noise: more noise wants a lower one.
RATES = {8.0: 1.2e-2, 3.0: 6e-3, 1.0: 2.5e-3}  # at δ = 10⁻³
_REACH = 0.0195  # the same in other words: about the rate times the noise multiplier
# What DP over clients does to a cohort of ten, at an ε that is generous.
CLIENT: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-2, "clip_norm": 1.0}
PROTECT = {"client": "plain", "distributed": "secagg"}


def configuration(seed: int, dp: str, epsilon: float | None = None, delta: float = 1e-3) -> Config:
    """Return a federation.

    Args:
        seed: The experiment's.
        dp: none, example, client or distributed; the last two at their one ε.
        epsilon: ε at example level.
        delta: δ at example level.
    """
    settings = {**COMMON, "seed": seed}
    if dp == "none":
        return config_from(settings)
    # An experiment, and repeatable: nothing of it is released to anyone.
    settings["simulated_noise"] = True
    if dp in PROTECT:
        return config_from(settings | CLIENT | {"dp": dp, "protect": PROTECT[dp]})
    config = config_from(settings | EXAMPLE | {"epsilon": epsilon, "delta": delta})
    if delta == 1e-3 and config.privacy.epsilon in RATES:
        return config_from({"learning_rate": RATES[config.privacy.epsilon]}, config)
    from fedvlm.federation.private_client import example_settings

    noise = example_settings(config, 2473).noise_multiplier
    return config_from({"learning_rate": _REACH / noise}, config)


def evaluate_lora(config: Config) -> dict[str, float]:
    """Federate, and return one of 100 by part, in percent."""
    last = simulate(config).rounds[-1]
    return {name: 100 * last[f"{name}_one_of_100"] for name in PARTS}
