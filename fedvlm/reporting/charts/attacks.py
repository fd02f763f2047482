"""Attacks from one vantage: AUC with its interval, beside guessing."""

from collections.abc import Sequence

from fedvlm.reporting.charts.figure import SMALL, Picture
from fedvlm.reporting.charts.intervals import Row, intervals_chart
from fedvlm.reporting.numbers import tick


def attacks_picture(
    label: str, rows: Sequence[Row], low: float, title: str, note: str = ""
) -> Picture:
    """Draw attacks' AUC, one of several pictures on one scale.

    Args:
        label: What it shows, for who doesn't see it.
        rows: An attack, or a protection under attack, a row.
        low: Lower end of the scale; the upper one is 1.
        title: Of the picture.
        note: Below it.
    """
    drawn = intervals_chart(
        label,
        rows,
        tick,
        width=SMALL,
        low=low,
        high=1,
        references=(("guessing", 0.5),),
        right=44,
    )
    return Picture(drawn, title=title, note=note)
