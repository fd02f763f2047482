"""When nodes score an adapter on what they hold out, and where they may not."""

from typing import Protocol

from fedvlm.errors import ConfigError

SCORES = ("none", "last", "each")


class Scored(Protocol):
    """What of a configuration decides about scores."""

    @property
    def node_scores(self) -> str:
        """When: none, last or each."""
        ...

    @property
    def dp(self) -> str:
        """Who adds noise."""
        ...

    @property
    def protect(self) -> str:
        """How updates are summed."""
        ...

    @property
    def membership(self) -> str:
        """Which images are members."""
        ...


def check_scores(config: Scored) -> None:
    """Refuse scores where they would be told without the protection that the run promises.

    Raises:
        ConfigError: Under DP, under HE, or in a run that is made for a membership audit.
    """
    if config.node_scores == "none":
        return
    if config.dp != "none":
        raise ConfigError(
            f"node_scores = {config.node_scores!r} would release counts of the nodes' pairs that "
            f"no noise of dp = {config.dp!r} covers; set it to none"
        )
    if config.protect == "he":
        raise ConfigError(
            "node_scores needs protect = plain, secagg or secagg-active: sums under encryption "
            "hold updates alone"
        )
    if config.membership == "half":
        raise ConfigError(
            "node_scores holds out pairs of the clients, which an audit of membership = 'half' "
            "would take for trained ones; set it to none"
        )
