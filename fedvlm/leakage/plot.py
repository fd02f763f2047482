"""The log–log ROC: what an attack finds when it may err only rarely."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedvlm.files import whole_file
from fedvlm.leakage.audit import AuditResult

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Vantages can see the same, and then their curves are one line.
_STYLES = ("-", "--")


def plot_roc(results: Sequence[AuditResult], ax=None):
    """Draw ROCs on logarithmic axes, colours safe for the colour-blind (Okabe and Ito 2008).

    Args:
        results: One curve each.
        ax: Matplotlib axes, or None for new ones.

    Returns:
        The axes.
    """
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(5, 4), layout="constrained").subplots()
    least = min((1 / len(one.others) for one in results), default=1e-3)
    for number, one in enumerate(results):
        label = " ".join(part for part in (one.vantage, one.attack) if part)
        colour = _COLOURS[number % len(_COLOURS)]
        curve = one.curve
        fpr, tpr = (np.maximum(rate, least / 2) for rate in (curve.fpr, curve.tpr))
        style, told = _STYLES[number % len(_STYLES)], f"{label} (AUC {one.auc.value:.2f})"
        ax.plot(fpr, tpr, color=colour, linestyle=style, label=told)
    ends = [least / 2, 1]
    ax.plot(ends, ends, color="grey", linestyle=":", linewidth=1, label="guessing")
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    ax.set(xlabel="false-positive rate", ylabel="true-positive rate")
    ax.legend(fontsize="small")
    return ax


def save_roc(results: Sequence[AuditResult], path: Path) -> None:
    """Write the log–log ROC as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    plot_roc(results, figure.subplots())
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
