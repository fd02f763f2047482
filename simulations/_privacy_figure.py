"""Table and figure of the utility under DP, from scores alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvlm.reporting.student import interval
from simulations._heads_cells import Cell
from simulations._page_figure import panels, save

PARTS = ("test", "ood", "withheld")
Scores = dict[str, dict[str, list[float]]]

_BLUE, _SKY, _GREEN, _ORANGE, _RED, _GREY = (
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#e69f00",
    "#d55e00",
    "#777777",
)
# Name before the ε, colour, marker, line, label.
_SERIES = (
    ("prototypes, one noise", _BLUE, "o", "-", "prototypes, one noise"),
    ("prototypes, planned for 6 of 10", _SKY, "s", "-", "… shared, 6 of 10 honest"),
    ("prototypes, each alone", _SKY, "v", ":", "… each client alone"),
    ("head, one noise", _GREEN, "D", "-", "linear head, one noise"),
    ("head, each alone", _GREEN, "v", ":", "… each client alone"),
    ("LoRA, each alone", _ORANGE, "^", "-", "LoRA, each client alone"),
    ("gate, each alone", _GREY, "P", "-", "gate, each client alone"),
)
_LEVELS = ("8", "3", "1")


def _text(values: list[float]) -> str:
    if not values:
        return "–"
    mean, _, high = interval(values)
    return f"{mean:.1f}" if len(values) < 2 else f"{mean:.1f} ± {high - mean:.1f}"


def table(scores: Scores, cells: Sequence[Cell]) -> str:
    """Return a Markdown table, in percent, ± half of a 95 % interval over seeds."""
    lines = [
        "| | test | unseen designer | concepts nobody holds | seeds |",
        "|---|---|---|---|---|",
    ]
    for cell in cells:
        if cell.name in scores:
            held = scores[cell.name]
            texts = " | ".join(_text(held[part]) for part in PARTS)
            lines.append(f"| {cell.name} | {texts} | {len(held['test'])} |")
    return "\n".join(lines)


def _lines(scores: Scores, ax: Axes) -> None:
    """Draw zero-shot and the control with their intervals."""
    for name, style in (("zero-shot", ":"), ("public-only control", "--")):
        if name in scores:
            mean, low, high = interval(scores[name]["test"])
            ax.axhline(mean, color=_RED, linestyle=style, label=f"{name}, {mean:.1f}", zorder=1)
            ax.axhspan(low, high, color=_RED, alpha=0.12, linewidth=0, zorder=0)


def plot_levels(scores: Scores, delta: str, ax: Axes) -> Axes:
    """Draw one of 100 without DP and over ε, at one δ.

    Args:
        scores: By cell.
        delta: As cells name it: 0.001 or 1e-05.
        ax: Where.
    """
    _lines(scores, ax)
    for number, (prefix, colour, marker, line, label) in enumerate(_SERIES):
        shift = 0.075 * (number - (len(_SERIES) - 1) / 2)
        names = (
            [f"{prefix.split(',')[0]}, no DP"] if line == "-" and "planned" not in prefix else [""]
        )
        for level in _LEVELS:
            full = f"{prefix}, ε = {level}, δ = {delta}"
            short = f"{prefix}, ε = {level}"
            names.append(full if full in scores or delta != "0.001" else short)
        places = [place for place, name in enumerate(names) if name in scores]
        found = [interval(scores[names[place]]["test"]) for place in places]
        if not found:
            continue
        means, lows, highs = (np.array(each) for each in zip(*found, strict=True))
        at = np.array(places) + shift
        private = np.array(places) > 0
        ax.errorbar(
            at[private],
            means[private],
            [(means - lows)[private], (highs - means)[private]],
            color=colour,
            marker=marker,
            linestyle=line,
            linewidth=1,
            markersize=5,
            capsize=2,
            label=label,
        )
        if (~private).any():
            ax.errorbar(
                at[~private],
                means[~private],
                [(means - lows)[~private], (highs - means)[~private]],
                color=colour,
                marker=marker,
                linestyle="none",
                markersize=5,
                capsize=2,
            )
    ax.axvline(0.5, color="#bbbbbb", linewidth=0.8)
    ax.set_xticks(range(4), ["no DP", *(f"ε = {level}" for level in _LEVELS)])
    ax.set_title(f"δ = {'10⁻³' if delta == '0.001' else '10⁻⁵'}", fontsize="medium")
    ax.set_xlim(-0.5, 3.5)
    return ax


def plot_clients(scores: Scores, ax: Axes) -> Axes:
    """Draw one of 100 over the number of clients, each hidden as a whole, at ε = 8."""
    _lines(scores, ax)
    found = []
    for name, parts in scores.items():
        if name.startswith("client level, ") and "prototypes" not in name:
            count = int(name.split(",", 1)[1].split(" clients")[0].replace(",", ""))
            found.append((count, *interval(parts["test"])))
    if found:
        counts, means, lows, highs = (np.array(each) for each in zip(*sorted(found), strict=True))
        ax.errorbar(
            counts,
            means,
            [means - lows, highs - means],
            color=_BLUE,
            marker="o",
            capsize=3,
            linewidth=1,
        )
        ax.set_xscale("log")
        ax.axvspan(counts.min() / 2, 240, color=_GREY, alpha=0.2, linewidth=0, zorder=0)
        ax.text(50, 60, "hopeless:\nthe control", ha="center", fontsize="small")
        ax.set_xlim(counts.min() / 2, counts.max() * 2)
    ax.set_xlabel("clients (2,480 pairs; above 1,000: 2.5 each)")
    ax.set_title("client level, prototypes, ε = 8", fontsize="medium")
    return ax


def figure(scores: Scores) -> Figure:
    """Draw both δ and the client level below each other."""
    found, (one, other, clients) = panels(3, height=4.6)
    plot_levels(scores, "0.001", one)
    plot_levels(scores, "1e-05", other)
    plot_clients(scores, clients)
    for ax in (one, other, clients):
        ax.set_ylabel("caption is first among 100, %")
        ax.set_ylim(0, 85)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper right")
    return found


def draw(scores: Scores, out: Path) -> None:
    """Write the figure as SVG."""
    save(figure(scores), out / "privacy-utility.svg")
