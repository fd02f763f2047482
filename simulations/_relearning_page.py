"""The table and the figure of relearning, from its JSON alone."""

from pathlib import Path
from typing import Any

from fedvlm.trust.relearning import RETAIN, TRAINED, UNSEEN
from simulations._page_figure import INK, panels, save

NAME = "relearning"
# Okabe and Ito's colours, told apart by the colour-blind, and by the marker without colour.
STATES = {
    "plain": ("plain run", "#0072B2", "o"),
    "sanitised": ("sanitised run", "#D55E00", "s"),
    "left out": ("run without the listed pairs", "#009E73", "^"),
    "before": ("before training", "#666666", "D"),
}
_PARTS = {
    TRAINED: "listed, trained on",
    UNSEEN: "listed, other drawings",
    RETAIN: "other concepts",
}


def said(one: dict[str, Any]) -> str:
    """Return an estimate of a result as a table's cell."""
    if one["value"] is None:
        return one["unresolved"]
    return f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"


def _several(epochs: list[int]) -> str:
    if epochs == [0]:
        return "before tuning"
    return f"mean after {', '.join(map(str, epochs))} epochs"


def table(found: dict[str, Any]) -> str:
    """Return first places by epochs of tuning, contrasts and membership as Markdown."""
    drawn, unsafe = found["lists"]["drawn"], found["lists"]["unsafe"]
    epochs, rows, rates = found["epochs"], drawn["rows"], drawn["rates"]
    lines = [
        f"A drawn list of {drawn['concepts']} concepts, seed {found['seed']}, {found['draws']} "
        f"draws of {rows['tuned on']} pairs to tune on; scored on {rows[TRAINED]} listed pairs "
        f"that clients trained on, {rows[UNSEEN]} other drawings, {rows[RETAIN]} of other "
        f"concepts. First place, one of 100, at {drawn['chosen']} of the federation's first rate:",
        "",
        f"| scored | adapter | epochs: {' | '.join(map(str, epochs))} |",
        f"|---|---|{'---|' * len(epochs)}",
    ]
    for part, title in _PARTS.items():
        for name, (label, _, _) in STATES.items():
            cells = [said(rates[drawn["chosen"]]["curves"][name][part][str(n)]) for n in epochs]
            lines.append(f"| {title} | {label} | {' | '.join(cells)} |")
    lines += [
        "",
        f"| sanitised run less | scored | when | {' | '.join(f'rate {rate}' for rate in rates)} |",
        f"|---|---|---|{'---|' * len(rates)}",
    ]
    for same in zip(*(one["contrasts"] for one in rates.values()), strict=True):
        one, cells = same[0], " | ".join(map(said, same))
        lines.append(
            f"| {STATES[one['second']][0]} | {_PARTS[one['part']]} | {_several(one['epochs'])} "
            f"| {cells} |"
        )
    lines += [
        "",
        "| forget list | adapter | membership AUC, listed | n of each | others | n of each |",
        "|---|---|---|--:|---|--:|",
    ]
    for name, one in found["lists"].items():
        for state, groups in one["membership"].items():
            cells = " | ".join(f"{said(g)} | {g['rows']}" for g in groups.values())
            lines.append(f"| {name} | {STATES[state][0]} | {cells} |")
    if "unresolved" in unsafe:
        lines += [
            "",
            f"Relearning of the unsafe list: {unsafe['unresolved']}; clients hold so few of its "
            "concepts.",
        ]
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], out: Path) -> None:
    """Draw a panel a part: SVG for the documentation, PNG to look at."""
    drawn, epochs = found["lists"]["drawn"], found["epochs"]
    curves = drawn["rates"][drawn["chosen"]]["curves"]
    figure, axes = panels(3, height=2.9, sharex=True)
    for axis, (part, title) in zip(axes, _PARTS.items(), strict=True):
        for place, (name, (label, colour, marker)) in enumerate(STATES.items()):
            cells = [curves[name][part][str(n)] for n in epochs]
            there = [n for n, one in enumerate(cells) if one["value"] is not None]
            told = [cells[n] for n in there]
            values = [one["value"] for one in told]
            # An interval from resamples need not hold its estimate: no negative bar.
            bars = [
                [max(0.0, one["value"] - one["low"]) for one in told],
                [max(0.0, one["high"] - one["value"]) for one in told],
            ]
            at = [n + 0.07 * (place - 1.5) for n in there]
            style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 5, "capsize": 2}
            axis.errorbar(at, values, yerr=bars, label=label, **style)
        axis.set_title(title, loc="left")
        axis.set_ylim(0, 1)
        axis.set_ylabel("first of 100")
        axis.grid(axis="y", alpha=0.3)
    axes[-1].set_xticks(range(len(epochs)), [str(n) for n in epochs])
    axes[-1].set_xlabel("epochs of tuning on listed pairs")
    told = axes[0].get_legend_handles_labels()
    figure.legend(*told, loc="outside upper center", ncols=2, frameon=False, labelcolor=INK)
    save(figure, out / f"{NAME}.svg")
    figure.savefig(out / f"{NAME}.png", dpi=100, facecolor="white")
