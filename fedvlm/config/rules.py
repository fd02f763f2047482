"""How updates become the next adapter: which settings of it go together, and which are refused."""

from typing import TYPE_CHECKING

from fedvlm.errors import ConfigError

if TYPE_CHECKING:
    from fedvlm.config.whole import Config

_PERSONAL = ("A", "B")
_PRODUCTS = ("flexlora", "fedex")


def site_ranks(config: "Config") -> tuple[int, ...]:
    """Return the ranks by site, in the order of the clients' numbers; empty where all have one.

    Raises:
        ConfigError: The text is no list of whole numbers from 1 to the rank, one for each client.
    """
    if not config.server.site_ranks.strip():
        return ()
    try:
        ranks = tuple(int(each) for each in config.server.site_ranks.split(","))
    except ValueError:
        ranks = (0,)
    if (
        not all(1 <= rank <= config.adapter.rank for rank in ranks)
        or len(ranks) != config.data.clients
    ):
        raise ConfigError(
            f"site_ranks takes one whole number from 1 to rank = {config.adapter.rank} for each of "
            f"the {config.data.clients} clients, separated by commas; got "
            f"{config.server.site_ranks!r}"
        )
    return ranks


def keeps_personal(config: "Config") -> bool:
    """Return whether each node keeps a part of the adapter to itself."""
    return config.server.share in _PERSONAL


def uses_products(config: "Config") -> bool:
    """Return whether the product B·A is what is averaged, in two sums a round."""
    return config.server.rule in _PRODUCTS


def sends_all(config: "Config") -> bool:
    """Return whether a message holds the whole adapter and nothing else, as plain FedAvg's does."""
    return (
        config.server.share == "both"
        and config.server.rule == "average"
        and config.protection.compression != "mask"
    )


def check_rules(config: "Config") -> None:
    """Refuse settings of the aggregation that don't go together.

    Raises:
        ConfigError: Naming both settings, and what to change.
    """
    server, protection, dp = config.server, config.protection, config.privacy.dp
    ranks = site_ranks(config)
    products, whole = uses_products(config), sends_all(config)
    if (products or server.share != "both") and config.adapter.kind != "lora":
        raise ConfigError(
            f"rule = {server.rule!r} with share = {server.share!r} needs both factors of a "
            f'LoRA that trains; use adapter = "lora", got {config.adapter.kind!r}'
        )
    if products and (server.share != "both" or protection.compression == "mask"):
        raise ConfigError(
            f"rule = {server.rule!r} averages products B·A, of which no half and no coordinate "
            'can be left out; use share = "both" and no mask'
        )
    if ranks and server.rule != "flexlora":
        raise ConfigError(
            'site_ranks needs rule = "flexlora": factors of different ranks have no average'
        )
    _check_optimizer(config)
    if whole and protection.compression == "none":
        return
    if protection.compression == "rounding" and (not protection.secure or dp != "none"):
        raise ConfigError(
            'compression = "rounding" narrows the lanes of secure aggregation: it needs protect = '
            f'"secagg" or "secagg-active" without DP, got protect = {protection.protect!r}, dp = '
            f"{dp!r}"
        )
    if whole:
        return
    if dp == "distributed":
        raise ConfigError(
            'dp = "distributed" is planned for whole adapters; use share = "both", rule = '
            '"average" and no mask (adapter = "ffa-lora" sends half)'
        )
    if dp == "example" and (products or server.share == "alternate"):
        raise ConfigError(
            f'dp = "example" noises the gradients of the whole adapter in one pass; rule = '
            f"{server.rule!r} with share = {server.share!r} isn't built for it: adapter = "
            '"ffa-lora" trains one factor alone'
        )
    if products and (dp != "none" or protection.protect == "he"):
        raise ConfigError(
            f"rule = {server.rule!r} takes two sums a round, for which neither DP nor sums under "
            f'encryption are planned; use dp = "none" and protect = "plain" or "secagg"'
        )
    if config.audit.canaries or config.audit.transcript:
        raise ConfigError(
            "canaries and transcripts are of whole adapters; an audit needs share = "
            '"both", rule = "average" and no mask'
        )


def _check_optimizer(config: "Config") -> None:
    """Refuse a server optimiser whose moments would belong to other coordinates each round."""
    server, compression = config.server, config.protection.compression
    moving = server.share == "alternate" or compression == "mask" or uses_products(config)
    if moving and server.optimizer != "fedavg":
        raise ConfigError(
            f"server_optimizer = {server.optimizer!r} keeps moments of the coordinates that "
            "are sent, which change from round to round here (share = "
            f"{server.share!r}, rule = {server.rule!r}, compression = {compression!r}); "
            'use "fedavg"'
        )
