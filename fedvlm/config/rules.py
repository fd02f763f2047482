"""How updates become the next adapter: which settings of it go together, and which are refused."""

from typing import TYPE_CHECKING

from fedvlm.errors import ConfigError

if TYPE_CHECKING:
    from fedvlm.config.simulation import SimulationConfig

SHARES = ("both", "A", "B", "alternate")
RULES = ("average", "flexlora", "fedex")
COMPRESSIONS = ("none", "mask", "rounding")
_PERSONAL = ("A", "B")
_PRODUCTS = ("flexlora", "fedex")
_SECURE = ("secagg", "secagg-active")


def site_ranks(config: "SimulationConfig") -> tuple[int, ...]:
    """Return the ranks by site, in the order of the clients' numbers; empty where all have one.

    Raises:
        ConfigError: The text is no list of whole numbers from 1 to the rank, one for each client.
    """
    if not config.site_ranks.strip():
        return ()
    try:
        ranks = tuple(int(each) for each in config.site_ranks.split(","))
    except ValueError:
        ranks = (0,)
    if not all(1 <= rank <= config.rank for rank in ranks) or len(ranks) != config.clients:
        raise ConfigError(
            f"site_ranks takes one whole number from 1 to rank = {config.rank} for each of the "
            f"{config.clients} clients, separated by commas; got {config.site_ranks!r}"
        )
    return ranks


def keeps_personal(config: "SimulationConfig") -> bool:
    """Return whether each node keeps a part of the adapter to itself."""
    return config.share in _PERSONAL


def uses_products(config: "SimulationConfig") -> bool:
    """Return whether the product B·A is what is averaged, in two sums a round."""
    return config.rule in _PRODUCTS


def sends_all(config: "SimulationConfig") -> bool:
    """Return whether a message holds the whole adapter and nothing else, as plain FedAvg's does."""
    return config.share == "both" and config.rule == "average" and config.compression != "mask"


def check_rules(config: "SimulationConfig") -> None:
    """Refuse settings of the aggregation that don't go together.

    Raises:
        ConfigError: Naming both settings, and what to change.
    """
    ranks = site_ranks(config)
    products, whole = uses_products(config), sends_all(config)
    if (products or config.share != "both") and config.adapter != "lora":
        raise ConfigError(
            f"rule = {config.rule!r} with share = {config.share!r} needs both factors of a LoRA "
            f'that trains; use adapter = "lora", got {config.adapter!r}'
        )
    if products and (config.share != "both" or config.compression == "mask"):
        raise ConfigError(
            f"rule = {config.rule!r} averages products B·A, of which no half and no coordinate can "
            'be left out; use share = "both" and no mask'
        )
    if ranks and config.rule != "flexlora":
        raise ConfigError(
            'site_ranks needs rule = "flexlora": factors of different ranks have no average'
        )
    _check_optimizer(config)
    if whole and config.compression == "none":
        return
    if config.compression == "rounding" and (config.protect not in _SECURE or config.dp != "none"):
        raise ConfigError(
            'compression = "rounding" narrows the lanes of secure aggregation: it needs protect = '
            f'"secagg" or "secagg-active" without DP, got protect = {config.protect!r}, dp = '
            f"{config.dp!r}"
        )
    if whole:
        return
    if config.dp == "distributed":
        raise ConfigError(
            'dp = "distributed" is planned for whole adapters; use share = "both", rule = '
            '"average" and no mask (adapter = "ffa-lora" sends half)'
        )
    if config.dp == "example" and (products or config.share == "alternate"):
        raise ConfigError(
            f'dp = "example" noises the gradients of the whole adapter in one pass; rule = '
            f"{config.rule!r} with share = {config.share!r} isn't built for it: adapter = "
            '"ffa-lora" trains one factor alone'
        )
    if products and (config.dp != "none" or config.protect == "he"):
        raise ConfigError(
            f"rule = {config.rule!r} takes two sums a round, for which neither DP nor sums under "
            f'encryption are planned; use dp = "none" and protect = "plain" or "secagg"'
        )
    if config.canaries or config.transcript:
        raise ConfigError(
            "canaries and transcripts are of whole adapters; an audit needs share = "
            '"both", rule = "average" and no mask'
        )


def _check_optimizer(config: "SimulationConfig") -> None:
    """Refuse a server optimiser whose moments would belong to other coordinates each round."""
    moving = config.share == "alternate" or config.compression == "mask" or uses_products(config)
    if moving and config.server_optimizer != "fedavg":
        raise ConfigError(
            f"server_optimizer = {config.server_optimizer!r} keeps moments of the coordinates that "
            "are sent, which change from round to round here (share = "
            f"{config.share!r}, rule = {config.rule!r}, compression = {config.compression!r}); "
            'use "fedavg"'
        )
