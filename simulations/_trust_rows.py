"""The rows of the trust grid: which federation each of them is."""

from typing import Any

from fedvlm.config import Config, config_from

# Every second image is a member by a fair coin, so that membership can be measured on the same
# runs; five clients then hold about as many pairs each as the demo's ten.
BASE: dict[str, Any] = {
    "adapter": "ffa-lora",
    "rank": 64,
    "lora_alpha": 128,
    "clients": 5,
    "membership": "half",
    "rounds": 5,
    "local_epochs": 2,
    "references": False,
    "workers": 1,
}
# As in the curve of what ε costs (`simulations.privacy_utility`), which chose the rates.
_EXAMPLE = {"dp": "example", "delta": 1e-3, "clip_norm": 1.0, "batch_size": 256}
_CLIENT = {"epsilon": 8.0, "delta": 1e-2, "clip_norm": 1.0}
PROTECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "secagg": {"protect": "secagg"},
    "secagg-active": {"protect": "secagg-active"},
    "he": {"protect": "he"},
    "example-8": {**_EXAMPLE, "epsilon": 8.0, "learning_rate": 1.2e-2},
    "example-3": {**_EXAMPLE, "epsilon": 3.0, "learning_rate": 6e-3},
    "example-1": {**_EXAMPLE, "epsilon": 1.0, "learning_rate": 2.5e-3},
    "client": {"dp": "client", **_CLIENT},
    "distributed": {"dp": "distributed", "protect": "secagg", **_CLIENT},
}
"""What each row of protections changes in the base configuration."""


def configuration(row: str, seed: int, **more: Any) -> Config:
    """Return the federation of a row of protections and a seed."""
    settings = {**BASE, **PROTECTIONS[row], "seed": seed, **more}
    if "dp" in PROTECTIONS[row]:
        # An experiment, and repeatable: nothing of it is released to anyone.
        settings["simulated_noise"] = True
    return config_from(settings)
