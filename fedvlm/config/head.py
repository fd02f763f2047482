"""What goes together with heads that need sums alone, and with noise that clients share."""

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
    _check_noise(config)
    if not config.has_head:
        return
    kind = config.adapter.kind
    if config.privacy.dp == "distributed":
        raise ConfigError(
            f"{kind} are sums of bounded terms of images, whose noise clients can share for each "
            'image: use dp = "example" with noise = "shared"; got dp = "distributed"'
        )
    if kind == "prototypes" and config.training.rounds != 1:
        raise ConfigError(
            f"prototypes are one sum, released once: rounds = 1; got {config.training.rounds}"
        )
    if kind == "head" and config.privacy.dp == "client":
        raise ConfigError(
            'at client level a head is released in each of its rounds; use adapter = "prototypes", '
            'which is released once, or dp = "example"'
        )
    if config.privacy.adaptive:
        raise ConfigError("a head's clip is part of how its sum is read; use adaptive = false")
    allowed = ("fedavg",) if kind == "prototypes" else ("fedavg", "fedavgm")
    if config.server.optimizer not in allowed:
        raise ConfigError(
            f"{kind} is a sum, and takes server_optimizer = {' or '.join(allowed)}; got "
            f"{config.server.optimizer!r}"
        )
    if config.computes_references:
        raise ConfigError(f"{kind} has no trained references; leave references out")


def _check_noise(config: "Config") -> None:
    if config.privacy.noise != "shared":
        return
    if config.privacy.dp != "example":
        raise ConfigError(
            f'noise = "shared" is for dp = "example", got {config.privacy.dp!r}; under '
            'dp = "distributed" clients share their noise anyway'
        )
    if not config.has_head:
        raise ConfigError(
            f'noise = "shared" sums bounded terms of examples; {config.adapter.kind!r} is trained '
            "by local steps, which are no such sum: one example may move them by anything; "
            'use adapter = "prototypes" or "head", or noise = "own"'
        )
    if not config.protection.secure:
        raise ConfigError(
            'noise = "shared" leaves each client\'s share far too weak to be seen alone; it '
            f'needs protect = "secagg" or "secagg-active", got {config.protection.protect!r}'
        )
