"""Plots of a result, rebuilt from its JSON, in the colour-blind safe colours of Okabe and Ito."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedvlm.federation.result import Result
from fedvlm.files import whole_file
from fedvlm.reporting.tables import METRICS

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
    """Plot the test's metric by round with the reference lines."""
    ax = _axes(ax)
    rounds = [entry["round"] for entry in result.rounds]
    series = (("test", "federated", BLUE, "o"), ("ood", "federated, OOD designer", SKY, "s"))
    for part, label, colour, marker in series:
        key = f"{part}_{result.metric}"
        if key in result.rounds[0]:
            values = [100 * entry[key] for entry in result.rounds]
            ax.plot(rounds, values, color=colour, marker=marker, label=label)
    for key, label, colour, style in _REFERENCES:
        value = result.summary.get(key)
        if value is not None:
            ax.axhline(100 * value, color=colour, linestyle=style, linewidth=1.2, label=label)
    ax.set(xlabel="round", ylabel=_ROUND_LABELS[result.metric], ylim=(0, 100))
    ax.set_xticks(rounds)
    ax.grid(alpha=0.25)
    if ax.get_legend_handles_labels()[0]:  # a server without data draws no line
        ax.legend(fontsize=8, ncols=2)
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
    """Plot the bytes that a client sent and received up to each round."""
    ax = _axes(ax)
    entries = result.rounds[1:]
    for key, label, colour, style in (
        ("upload_bytes_per_client", "sent", RED, "o-"),
        ("download_bytes_per_client", "received", SKY, "s--"),  # both are often the same line
    ):
        total, values = 0.0, []
        for entry in entries:
            total += entry[key] / 1e6
            values.append(total)
        ax.plot([e["round"] for e in entries], values, style, color=colour, label=label)
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
