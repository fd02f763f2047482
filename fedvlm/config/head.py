"""What goes together with heads that need one sum, and with noise that clients share."""

from typing import TYPE_CHECKING

from fedvlm.errors import ConfigError

if TYPE_CHECKING:
    from fedvlm.config.whole import Config


def check_head(config: "Config") -> None:
    """Refuse settings that no sum of bounded terms can meet.

    Args:
        config: The federation's configuration.

    Raises:
        ConfigError: Saying which setting to change.
    """
    prototypes = config.adapter.kind == "prototypes"
    if config.privacy.noise == "shared":
        if config.privacy.dp != "example":
            raise ConfigError(
                f'noise = "shared" is for dp = "example", got {config.privacy.dp!r}; under '
                'dp = "distributed" clients share their noise anyway'
            )
        if not prototypes:
            raise ConfigError(
                'noise = "shared" sums bounded terms of examples; '
                f"{config.adapter.kind!r} is trained by local steps, which are no such sum: one "
                'example may move them by anything; use adapter = "prototypes", or noise = "own"'
            )
        if not config.protection.secure:
            raise ConfigError(
                'noise = "shared" leaves each client\'s share far too weak to be seen alone; it '
                f'needs protect = "secagg" or "secagg-active", got {config.protection.protect!r}'
            )
    if not prototypes:
        return
    if config.training.rounds != 1:
        raise ConfigError(
            f"prototypes are one sum, released once: rounds = 1; got {config.training.rounds}"
        )
    if config.privacy.dp in ("client", "distributed") or (
        config.privacy.dp == "example" and config.privacy.noise == "own"
    ):
        raise ConfigError(
            'prototypes take dp = "none", or dp = "example" with noise = "shared"; got '
            f"dp = {config.privacy.dp!r}, noise = {config.privacy.noise!r}"
        )
    if config.server.optimizer != "fedavg":
        raise ConfigError(
            f"prototypes are a sum, and take server_optimizer = fedavg; got "
            f"{config.server.optimizer!r}"
        )
    if config.audit.canaries or config.computes_references:
        raise ConfigError("prototypes have no canaries and no trained references; take them out")
