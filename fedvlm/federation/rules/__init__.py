"""How clients' adapters become the next one: one file a rule, NumPy alone."""

from fedvlm.federation.rules.choose import rule_of
from fedvlm.federation.rules.coordinates import CoordinateRule
from fedvlm.federation.rules.fedex import FedEx
from fedvlm.federation.rules.flexlora import FlexLoRA
from fedvlm.federation.rules.layers import Layer, Layout, layers_of
from fedvlm.federation.rules.protocol import AggregationRule, ProductRule, require_linear
from fedvlm.federation.rules.rounding import rounding_error
from fedvlm.federation.rules.sketch import Sketch, truncated

__all__ = [
    "AggregationRule",
    "CoordinateRule",
    "FedEx",
    "FlexLoRA",
    "Layer",
    "Layout",
    "ProductRule",
    "Sketch",
    "layers_of",
    "require_linear",
    "rounding_error",
    "rule_of",
    "truncated",
]
