"""What goes together with heads that need one sum, and with noise that clients share."""

from typing import TYPE_CHECKING

from fedvlm.errors import ConfigError

if TYPE_CHECKING:
    from fedvlm.config.simulation import SimulationConfig

SECURE = ("secagg", "secagg-active")


def check_head(config: "SimulationConfig") -> None:
    """Refuse settings that no sum of bounded terms can meet.

    Args:
        config: The federation's configuration.

    Raises:
        ConfigError: Saying which setting to change.
    """
    prototypes = config.adapter == "prototypes"
    if config.noise == "shared":
        if config.dp != "example":
            raise ConfigError(
                f'noise = "shared" is for dp = "example", got {config.dp!r}; under '
                'dp = "distributed" clients share their noise anyway'
            )
        if not prototypes:
            raise ConfigError(
                f'noise = "shared" sums bounded terms of examples; {config.adapter!r} is trained '
                "by local steps, which are no such sum: one example may move them by anything; "
                'use adapter = "prototypes", or noise = "own"'
            )
        if config.protect not in SECURE:
            raise ConfigError(
                'noise = "shared" leaves each client\'s share far too weak to be seen alone; it '
                f'needs protect = "secagg" or "secagg-active", got {config.protect!r}'
            )
    if not prototypes:
        return
    if config.rounds != 1:
        raise ConfigError(f"prototypes are one sum, released once: rounds = 1; got {config.rounds}")
    if config.dp in ("client", "distributed") or (config.dp == "example" and config.noise == "own"):
        raise ConfigError(
            'prototypes take dp = "none", or dp = "example" with noise = "shared"; got '
            f"dp = {config.dp!r}, noise = {config.noise!r}"
        )
    if config.server_optimizer != "fedavg":
        raise ConfigError(
            f"prototypes are a sum, and take server_optimizer = fedavg; got "
            f"{config.server_optimizer!r}"
        )
    if config.canaries or config.computes_references:
        raise ConfigError("prototypes have no canaries and no trained references; take them out")
