"""A run's figures: by round, elsewhere, by domain, by vantage, and by pillar of trust."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from fedvlm.reporting.charts import (
    Curve,
    Figure,
    Line,
    Mark,
    Reference,
    Row,
    attacks_picture,
    intervals_chart,
    lines_chart,
    roc_chart,
)
from fedvlm.reporting.charts.figure import NARROW, SMALL, Picture, both
from fedvlm.reporting.facts import VANTAGES, Facts, Score
from fedvlm.reporting.numbers import decimal, finite, percent, round_percent, tick
from fedvlm.reporting.svg import top_of

ELSEWHERE = {
    "ood": "a domain that nobody holds",
    "withheld": "concepts that nobody holds",
    "retention": "public concepts",
}
_REFERENCES = (
    ("central", "central", "central"),
    ("local_only_best", "best client alone", "best alone"),
    ("local_only", "clients alone, mean", "alone, mean"),
    ("control", "public pairs alone", "public alone"),
    ("zero_shot", "zero-shot", "zero-shot"),
)
_SHOWN = 5  # attacks of a vantage
_MEASURES = 7  # of a pillar


def _points(facts: Facts, part: str) -> list[tuple[int, Score]]:
    found = ((int(e["round"]), facts.score(e, part)) for e in facts.result.rounds)
    return [(number, score) for number, score in found if score is not None]


def rounds_figure(facts: Facts) -> Figure | None:
    """Draw the test's score by round beside what it is to be read against."""
    part = "test" if _points(facts, "test") else "nodes"
    points = _points(facts, part)
    if not points:
        return None
    last = facts.config.training.rounds

    def draw(width: float) -> Markup:
        short = width < 500
        told = facts.result.summary if part == "test" else {}
        references = [
            Reference(brief if short else name, value)
            for key, name, brief in _REFERENCES
            if (value := finite(told.get(key))) is not None
        ]
        name = "federated" if part == "test" else "on the nodes"
        return lines_chart(
            _label(facts, points),
            Line(name, points),
            references,
            width=width,
            height=330 if not short else 300,
            margin=184 if not short else 128,
            last=last,
        )

    among = facts.candidates(part) or 100
    what = (
        "Answers that are right word for word"
        if facts.result.metric == "exact_match"
        else f"Test images whose caption is found among {among}"
    )
    if part == "nodes":
        what = "Pairs held out by the nodes whose caption is found"
    banded = any(score.low is not None for _, score in points)
    return Figure(
        f"{what}, by round",
        "Dashed: what it is to be read against, on the same test."
        + (" Shaded: the 95 % interval over test images." if banded else "")
        + _best(facts),
        (both(draw),),
    )


def _best(facts: Facts) -> str:
    """Say which round was best on validation, where that is another one than the last."""
    best = finite(facts.result.best.get("round"))
    if best is None or best == facts.result.rounds[-1]["round"]:
        return ""
    return f" Best on validation: round {best:.0f}."


def _label(facts: Facts, points: list[tuple[int, Score]]) -> str:
    first, last = points[0], points[-1]
    return (
        f"Line chart by round: {percent(first[1].value)} at round {first[0]}, "
        f"{percent(last[1].value)} at round {last[0]}; the table of rounds has every value"
    )


def elsewhere_figure(facts: Facts) -> Figure | None:
    """Draw the other parts of the data, each beside its own start and no other's lines."""
    found = {part: points for part in ELSEWHERE if (points := _points(facts, part))}
    if not found:
        return None
    top = top_of([s.high or s.value for points in found.values() for _, s in points])
    pictures = []
    for part, points in found.items():
        references = [Reference("before", points[0][1].value)]
        for key, name in ((f"{part}_control", "public"), (f"{part}_central", "central")):
            value = finite(facts.result.summary.get(key))
            if value is not None:
                references.append(Reference(name, value))
        drawn = lines_chart(
            f"{ELSEWHERE[part]}: {percent(points[0][1].value)} before, "
            f"{percent(points[-1][1].value)} after the last round shown",
            Line("now", points),
            references,
            width=SMALL,
            height=190,
            margin=84,
            top=max(top, *(r.value for r in references)),
            last=facts.config.training.rounds,
        )
        among = facts.candidates(part)
        note = f"found among {among}" if among else ""
        pictures.append(Picture(drawn, title=ELSEWHERE[part], note=note))
    return Figure(
        "Where it was not trained to be good",
        "One scale for all; each beside what it was before, with its 95 % interval.",
        tuple(pictures),
    )


def domains_figure(facts: Facts) -> Figure | None:
    """Draw the test's score by domain of its images, before and after."""
    if not facts.result.rounds:
        return None
    first, last = facts.result.rounds[0], facts.result.rounds[-1]
    names = [key.removeprefix("domain_") for key in last if str(key).startswith("domain_")]
    rows = []
    for name in names:
        before, after = finite(first.get(f"domain_{name}")), finite(last.get(f"domain_{name}"))
        marks = [
            Mark(Score(value), f"{name}, {when}: {percent(value)}", kind)
            for value, when, kind in ((before, "before", "hollow"), (after, "after", "spot"))
            if value is not None
        ]
        rows.append((after or 0.0, Row(name, marks, percent(after))))
    if len(rows) < 2:
        return None
    ordered = [row for _, row in sorted(rows, key=lambda pair: -pair[0])]
    top = top_of([mark.score.value for row in ordered for mark in row.marks])

    def draw(width: float) -> Markup:
        return intervals_chart(
            "Dots by domain, before and after: "
            + "; ".join(f"{row.name} {row.value}" for row in ordered),
            ordered,
            round_percent,
            width=width,
            low=0,
            high=top,
            left=170 if width > 500 else 96,
        )

    return Figure(
        "By domain of the test image",
        "Hollow: before training. Filled: after the last round. The lowest row is the worst off.",
        (both(draw),),
    )


def vantage_figure(facts: Facts) -> Figure | None:
    """Draw the best attacks from each vantage, side by side."""
    if not facts.best:
        return None
    absent: Mapping[str, Any] = facts.audit.get("absent") or {}
    rows_by: dict[str, list[Mapping[str, Any]]] = {}
    for row in facts.result.leakage:
        if finite(row.get("auc")) is not None:
            rows_by.setdefault(str(row.get("vantage")), []).append(row)
    lows = [v for row in facts.result.leakage if (v := finite(row.get("auc_low"))) is not None]
    low = min(0.4, int(10 * min([0.4, *lows])) / 10)
    pictures = []
    for vantage, title in VANTAGES.items():
        rows = sorted(rows_by.get(vantage, []), key=lambda row: -float(row["auc"]))
        head = f"{vantage}: {title}"
        if not rows:
            if vantage in absent:
                pictures.append(Picture(Markup(""), title=head, note=f"No view: {absent[vantage]}"))
            continue
        drawn = [_attack_row(row, number == 0) for number, row in enumerate(rows[:_SHOWN])]
        more = len(rows) - len(drawn)
        pictures.append(
            attacks_picture(
                f"{head}: best attack {rows[0].get('attack')}, AUC {decimal(rows[0]['auc'])}",
                drawn,
                low,
                head,
                f"and {more} weaker" if more else "",
            )
        )
    return Figure(
        "Who can tell members from non-members, and how well",
        "AUC of membership inference with its interval, by who is looking; 0.5 is guessing. The "
        "intervals hold for all attacks of a vantage together, so that the best may be picked.",
        tuple(pictures),
    )


def _attack_row(row: Mapping[str, Any], best: bool) -> Row:
    auc = float(row["auc"])
    low, high = finite(row.get("auc_low")), finite(row.get("auc_high"))
    name = str(row.get("attack", ""))
    told = f"{name}: AUC {decimal(auc)} [{decimal(low)}, {decimal(high)}]"
    return Row(name, [Mark(Score(auc, low, high), told)], decimal(auc), strong=best)


def _curves(told: Iterable[Any]) -> list[tuple[str, Curve]]:
    out = []
    for each in told:
        points = [
            tuple(float(v) for v in point)
            for point in each.get("points", [])
            if len(point) == 4 and all(finite(v) is not None for v in point)
        ]
        vantage = str(each.get("vantage"))
        if points and vantage in VANTAGES:
            out.append((vantage, Curve(f"{vantage}, {each.get('attack')}", points)))  # pyright: ignore
    return out


def roc_figure(facts: Facts) -> Figure | None:
    """Draw the best attack's ROC from each vantage, none hidden behind another."""
    curves = _curves(facts.audit.get("roc") or [])
    if not curves:
        return None
    least = min(curve.points[0][0] for _, curve in curves)
    pictures = tuple(
        Picture(
            roc_chart(
                f"ROC on logarithmic axes of {curve.name}",
                curve,
                [other for place, other in curves if place != vantage],
                width=SMALL,
                least=least / 1.5,
            ),
            title=f"{vantage}: {VANTAGES[vantage]}",
            note=f"best attack: {curve.name.partition(', ')[2]}",
        )
        for vantage, curve in curves
    )
    return Figure(
        "What is found while few are falsely accused",
        "True positives against false ones, both logarithmic, with a pointwise interval; dashed is "
        "guessing, grey are the other vantages.",
        pictures,
    )


def _estimate(told: Any) -> Score | None:
    if not isinstance(told, Mapping) or finite(told.get("value")) is None:
        return None
    return Score(float(told["value"]), finite(told.get("low")), finite(told.get("high")))


def _moved(column: Mapping[str, Any]) -> float:
    """Return how far a run moved a measure, in half intervals; the primary one comes first."""
    change = _estimate(column.get("change"))
    if column.get("primary"):
        return math.inf
    if change is None or change.low is None or change.high is None or change.high <= change.low:
        return 0.0
    return 2 * abs(change.value) / (change.high - change.low)


def trust_figure(facts: Facts) -> Figure | None:
    """Draw the trust audit's measures by pillar, zero-shot beside the run."""
    by_pillar: dict[str, list[tuple[float, Row]]] = {}
    for column in facts.trust.get("columns") or []:
        after = _estimate(column.get("after"))
        if after is None or column.get("pillar") == "utility":  # that is the page's first figure
            continue
        title, marks = str(column.get("title")), []
        for one, when, kind in (
            (_estimate(column.get("before")), "zero-shot", "hollow"),
            (after, "this run", "spot"),
        ):
            if one is not None:
                told = f"{title}, {when}: {decimal(one.value, 3)}"
                told += f" [{decimal(one.low, 3)}, {decimal(one.high, 3)}]"
                marks.append(Mark(one, told, kind))
        row = Row(title, marks, decimal(after.value, 2), strong=bool(column.get("primary")))
        by_pillar.setdefault(str(column.get("pillar")), []).append((_moved(column), row))
    if not by_pillar:
        return None
    pictures = []
    for pillar, found in by_pillar.items():
        rows = [row for _, row in sorted(found, key=lambda pair: -pair[0])[:_MEASURES]]
        more = len(found) - len(rows)
        ends = [
            value
            for row in rows
            for mark in row.marks
            for value in (mark.score.low, mark.score.high, mark.score.value)
            if value is not None
        ]
        pictures.append(
            Picture(
                intervals_chart(
                    f"{pillar}: " + "; ".join(f"{row.name} {row.value}" for row in rows),
                    rows,
                    tick,
                    width=NARROW,
                    low=min([0.0, *ends]),
                    high=max([0.0, *ends]),
                    references=(("", 0.5 if pillar == "privacy" else 0.0),),
                    right=52,
                ),
                title=pillar,
                note=f"and {more} that moved less" if more else "",
            )
        )
    return Figure(
        "Whom it helps and whom it hurts, by pillar",
        "Hollow: zero-shot. Filled: this run. Bars: 95 % intervals over concepts. In bold: the "
        "pillar's primary measure. Below it, what the run moved most beside its uncertainty.",
        tuple(pictures),
        two=True,
    )
