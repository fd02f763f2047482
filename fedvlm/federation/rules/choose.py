"""Which rule a configuration asks for."""

from fedvlm.config.rules import site_ranks
from fedvlm.config.whole import Config
from fedvlm.federation.rules.coordinates import CoordinateRule
from fedvlm.federation.rules.fedex import FedEx
from fedvlm.federation.rules.flexlora import FlexLoRA
from fedvlm.federation.rules.layers import Layout
from fedvlm.federation.rules.protocol import require_linear


def rule_of(config: Config, layout: Layout) -> CoordinateRule | FlexLoRA | FedEx:
    """Return the aggregation rule of a configuration; server and nodes each make their own.

    Args:
        config: The federation's configuration.
        layout: Name and shape of each parameter: `FlatView.layout`.

    Raises:
        ConfigError: The adapter has no pairs of LoRA factors where the rule needs them, or the
            rule needs single updates and the protection hides them.
    """
    width = config.server.sketch or 2 * config.adapter.rank
    if config.server.rule == "flexlora":
        rule = FlexLoRA(layout, width, config.training.seed, site_ranks(config))
    elif config.server.rule == "fedex":
        rule = FedEx(layout, width, config.training.seed)
    else:
        kept = config.protection.kept if config.protection.compression == "mask" else 1.0
        rule = CoordinateRule(layout, config.server.share, kept, config.training.seed)
    require_linear(rule, config.protection.protect)
    return rule
