"""Plots of a result, rebuilt from its JSON, in the colour-blind safe colours of Okabe and Ito."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvlm.federation.result import Result
from fedvlm.files import whole_file
from fedvlm.reporting.svg import spread
from fedvlm.reporting.tables import METRICS

_SAME = 0.02  # of two lines that nobody could tell apart
BLACK, ORANGE, SKY, GREEN, BLUE, RED = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
)
_ROUND_LABELS = {
    "one_of_100": "image → caption, one of 100 (%)",
    "exact_match": "exact match of answers (%)",
}
_REFERENCES = (
    ("central", "central", GREEN, "--"),
    ("local_only_best", "local only, best", ORANGE, ":"),
    ("local_only", "local only, mean", ORANGE, "--"),
    ("control", "public pairs alone", RED, "-."),
    ("zero_shot", "zero-shot", BLACK, "--"),
)


def _axes(ax: Axes | None) -> Axes:
    return ax if ax is not None else Figure(figsize=(7, 4.2), layout="constrained").subplots()


def plot_rounds(result: Result, ax: Axes | None = None) -> Axes:
    """Plot the test's metric by round, each line labelled where it ends.

    Only what is measured on the test stands here: an unseen designer's line has no business
    beside the test's references.
    """
    ax = _axes(ax)
    rounds = [entry["round"] for entry in result.rounds]
    ends: list[tuple[float, str, str]] = []
    key = f"test_{result.metric}"
    if key in result.rounds[0]:
        values = [100 * entry[key] for entry in result.rounds]
        ax.plot(rounds, values, color=BLUE, marker="o", label="federated")
        ends.append((values[-1], f"federated {values[-1]:.0f}", BLUE))
        if f"{key}_low" in result.rounds[0]:
            low, high = (
                [100 * e[f"{key}_{end}"] for e in result.rounds] for end in ("low", "high")
            )
            ax.fill_between(rounds, low, high, color=BLUE, alpha=0.15, linewidth=0)
    for key, label, colour, style in _REFERENCES:
        value = result.summary.get(key)
        if value is not None:
            ax.axhline(100 * value, color=colour, linestyle=style, linewidth=1.2, label=label)
            ends.append((100 * value, f"{label} {100 * value:.0f}", colour))
    highest = max([10.0, *(value for value, _, _ in ends)])
    top = min(100.0, 10 * math.ceil(highest / 9))
    ax.set(xlabel="round", ylabel=_ROUND_LABELS[result.metric], ylim=(0, top))
    ax.set_xticks(rounds)
    ax.grid(alpha=0.25)
    places = spread([value for value, _, _ in ends], top / 16, 0, top)
    for (_, words, colour), place in zip(ends, places, strict=True):
        ax.annotate(
            words,
            (1.02, place / top),
            xycoords="axes fraction",
            color=colour,
            fontsize=8,
            va="center",
        )
    return ax


def plot_domains(result: Result, ax: Axes | None = None) -> Axes:
    """Plot retrieval by domain before and after the federation."""
    ax = _axes(ax)
    first, last = result.rounds[0], result.rounds[-1]
    names = [key.removeprefix("domain_") for key in last if key.startswith("domain_")]
    places = range(len(names))
    for entry, shift, colour, label in (
        (first, -0.2, BLACK, "zero-shot"),
        (last, 0.2, BLUE, "federated"),
    ):
        values = [100 * entry[f"domain_{name}"] for name in names]
        bars = ax.bar([p + shift for p in places], values, 0.38, color=colour, label=label)
        ax.bar_label(bars, fmt="%.0f", fontsize=8)
    ax.set(ylabel=f"{METRICS[result.metric]} (%)", xlabel="domain of the test image", ylim=(0, 100))
    ax.set_xticks(list(places), names)
    ax.legend(fontsize=8)
    return ax


def plot_bytes(result: Result, ax: Axes | None = None) -> Axes:
    """Plot a client's bytes up to each round, sent and received; one line where they agree."""
    ax = _axes(ax)
    entries = result.rounds[1:]
    lines = {
        label: np.cumsum([entry[key] / 1e6 for entry in entries])
        for label, key in (
            ("sent", "upload_bytes_per_client"),
            ("received", "download_bytes_per_client"),
        )
    }
    if entries and np.allclose(*lines.values(), rtol=_SAME):
        lines = {"sent, and as much received": lines["sent"]}
    for (label, values), colour in zip(lines.items(), (RED, SKY), strict=False):
        ax.plot([e["round"] for e in entries], values, "o-", color=colour, label=label)
    ax.set(xlabel="round", ylabel="MB of one client, summed up", ylim=(0, None))
    ax.locator_params(axis="x", integer=True)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8)
    return ax


PLOTS = {"rounds": plot_rounds, "domains": plot_domains, "bytes": plot_bytes}
"""Every plot of a federation, by the name of its file."""


def save_plots(result: Result, folder: Path) -> list[Path]:
    """Write every plot as PNG into a folder; returns the paths."""
    paths = []
    for name, plot in PLOTS.items():
        figure = plot(result).figure
        path = folder / f"{name}.png"
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=140)  # pyright: ignore
        paths.append(path)
    return paths
