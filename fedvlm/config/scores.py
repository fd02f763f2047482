"""When nodes score an adapter on what they hold out, and where they may not."""

from typing import TYPE_CHECKING

from fedvlm.errors import ConfigError

if TYPE_CHECKING:
    from fedvlm.config.whole import Config


def check_scores(config: "Config") -> None:
    """Refuse scores where they would be told without the protection that the run promises.

    Raises:
        ConfigError: Under DP, under HE, or in a run that is made for a membership audit.
    """
    asked = config.server.node_scores
    if asked == "none":
        return
    if config.privacy.dp != "none":
        raise ConfigError(
            f"node_scores = {asked!r} would release counts of the nodes' pairs that no noise of "
            f"dp = {config.privacy.dp!r} covers; set it to none"
        )
    if config.protection.protect == "he":
        raise ConfigError(
            "node_scores needs protect = plain, secagg or secagg-active: sums under encryption "
            "hold updates alone"
        )
    if config.data.membership == "half":
        raise ConfigError(
            "node_scores holds out pairs of the clients, which an audit of membership = 'half' "
            "would take for trained ones; set it to none"
        )
