"""Pictures of runs and comparisons as inline SVG: one file a kind of picture."""

from fedvlm.reporting.charts.attacks import attacks_picture
from fedvlm.reporting.charts.figure import Figure
from fedvlm.reporting.charts.intervals import Mark, Row, intervals_chart
from fedvlm.reporting.charts.lines import Line, Reference, lines_chart
from fedvlm.reporting.charts.roc import Curve, roc_chart
from fedvlm.reporting.charts.scatter import Point, scatter_chart

__all__ = [
    "Curve",
    "Figure",
    "Line",
    "Mark",
    "Point",
    "Reference",
    "Row",
    "attacks_picture",
    "intervals_chart",
    "lines_chart",
    "roc_chart",
    "scatter_chart",
]
