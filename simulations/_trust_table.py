"""The trust grid's tables, contrasts to plain, and figures, from its cells alone."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedvlm.errors import DataError
from fedvlm.files import whole_file, write_text
from fedvlm.reporting.student import interval
from fedvlm.trust.contrasts import holm, over_seeds, tost
from fedvlm.trust.estimate import Estimate

Cell = dict[str, Any]
PRIMARY = ("tone_gap", "overconfidence", "backdoor")
MARGINS = {"tone_gap": 0.02, "overconfidence": 0.02, "backdoor": 0.02}
"""What counts as equal to plain, in the measures' own units: stated before any run."""
EQUAL = ("secagg", "secagg-active", "he")
"""Protections that should change nothing but who sees what."""

SHOWN: dict[str, tuple[tuple[str, str], ...]] = {
    "utility": (("one_of_100", "test, one of 100"),),
    "fairness": (
        ("tone_gap", "tone gap, default − dark"),
        ("tone_gap_light", "tone gap, light − dark"),
        ("gap_of_gains", "gap of gains"),
        ("twin_swaps", "man/woman swaps"),
        ("tone_probe", "tone probe − chance"),
        ("tone_skew", "tone MaxSkew@10 − chance"),
    ),
    "robustness": (
        ("overconfidence", "confidence − accuracy"),
        ("ece", "calibration error, debiased"),
        ("corrupted_3", "corrupted, severity 3"),
        ("unseen_designer", "unseen designer − seen"),
        ("auroc_withheld_mcm", "AUROC withheld, MCM"),
        ("auroc_noise_mcm_at_1", "AUROC noise, MCM at τ = 1"),
        ("least_radius", "median least L∞, /255"),
    ),
    "safety": (
        ("backdoor", "patch answered with its target"),
        ("unsafe_queries", "unsafe@10, unsafe queries"),
        ("filter_caught", "filter at 5 %: caught"),
        ("filter_tones", "false alarms, dark − light"),
        ("typographic", "word − scrambled"),
    ),
    "privacy": (
        ("membership_noto", "membership AUC, noto"),
        ("membership_twemoji", "membership AUC, twemoji"),
        ("membership_fluent-flat", "membership AUC, fluent-flat"),
        ("membership_emojione", "membership AUC, emojione"),
        ("membership_noto-v1", "membership AUC, noto-v1"),
    ),
}
"""Pillar → the measures that the tables and figures show."""


def _column(cell: Cell, name: str) -> dict[str, Any] | None:
    return next((one for one in cell.get("columns", ()) if one["name"] == name), None)


def _values(cells: list[Cell], name: str, which: str = "after") -> list[float]:
    found = [_column(cell, name) for cell in cells]
    numbers = [one[which]["value"] for one in found if one is not None and which in one]
    return [value for value in numbers if value is not None]


def summary(cells: list[Cell], name: str, which: str = "after") -> Estimate | None:
    """Return a mean over seeds with Student's interval, or one seed's own."""
    values = _values(cells, name, which)
    if not values:
        return None
    if len(values) == 1:
        one = next(c for c in (_column(cell, name) for cell in cells) if c and which in c)[which]
        return Estimate(one["value"], one["low"], one["high"], one["rows"], one["clusters"])
    mean, low, high = interval(values)
    return Estimate(mean, low, high, 20, 20)


def _by_concept(cell: Cell, name: str) -> dict[int, float] | None:
    one = _column(cell, name)
    if one is None or "by_concept" not in one:
        return None
    return {int(key): value for key, value in one["by_concept"].items()}


def _differences(ours: list[Cell], plain: list[Cell], name: str) -> list[dict[int, float]]:
    by_seed = {cell["seed"]: _by_concept(cell, name) for cell in plain}
    out = []
    for cell in ours:
        mine, theirs = _by_concept(cell, name), by_seed.get(cell["seed"])
        if mine and theirs:
            out.append({key: mine[key] - theirs[key] for key in mine.keys() & theirs.keys()})
    return out


def contrasts(cells: list[Cell], order: list[str]) -> list[list[str]]:
    """Return rows of contrasts to plain: each primary measure, Holm over the three of a row."""
    rng = np.random.default_rng(0)
    plain = [cell for cell in cells if cell["cell"] == "plain"]
    rows = []
    for name in order:
        ours = [cell for cell in cells if cell["cell"] == name and cell["kind"] != "attack"]
        if not ours or name == "plain" or ours[0]["kind"] == "posthoc":
            continue
        found: dict[str, Estimate] = {}
        equal: dict[str, str] = {}
        for measure in PRIMARY:
            differences = _differences(ours, plain, measure)
            try:
                found[measure] = over_seeds(differences, rng)
            except DataError:
                continue
            if name in EQUAL:
                shared = sorted(set.intersection(*(set(one) for one in differences)))
                means = [float(np.mean([one[key] for one in differences])) for key in shared]
                verdict = tost(means, MARGINS[measure])
                word = "equal" if verdict.equivalent else "not shown equal"
                equal[measure] = f", {word} within ±{verdict.margin:g}"
        adjusted = holm({m: one.p for m, one in found.items() if one.p is not None})
        row = [name, str(len(ours))]
        for measure in PRIMARY:
            if measure not in found:
                row.append("–")
                continue
            mark = " *" if adjusted[measure] <= 0.05 else ""
            row.append(f"{found[measure]}{mark}{equal.get(measure, '')}")
        rows.append(row)
    return rows


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _told(one: Estimate | None) -> str:
    return "–" if one is None or not np.isfinite(one.value) else f"{one.value:.3f}"


def _spread(one: Estimate | None) -> str:
    if one is None:
        return "–"
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def write_tables(cells: list[Cell], order: list[str], out: Path) -> str:
    """Write `trust-grid.md` from the cells that are there; returns its text."""
    parts = []
    plain = [cell for cell in cells if cell["cell"] == "plain"]
    models = [n for n in order if any(c["cell"] == n and c["kind"] != "attack" for c in cells)]
    for pillar, shown in SHOWN.items():
        rows = []
        if plain and pillar != "privacy":
            told = [_spread(summary(plain, name, "before")) for name, _ in shown]
            rows.append(["zero-shot", *told])
        for name in models:
            ours = [cell for cell in cells if cell["cell"] == name]
            if ours[0]["kind"] == "posthoc":
                base = [{**cell, "columns": cell["unrepaired"]} for cell in ours]
                rows.append(
                    [f"{name}: before, half", *(_spread(summary(base, n)) for n, _ in shown)]
                )
            rows.append([name, *(_spread(summary(ours, measure)) for measure, _ in shown)])
        parts.append(f"### {pillar}\n\n" + _markdown(["row", *(t for _, t in shown)], rows))
    header = ["row − plain", "seeds", "tone gap", "confidence − accuracy", "patch answered"]
    found = contrasts(cells, order)
    if found:
        parts.append("### contrasts to plain\n\n" + _markdown(header, found))
    attacks = _attack_rows(cells, order)
    if attacks:
        header = ["attack, 1 of 10 clients", "seeds", "success", "clean, one of 100", "unpoisoned"]
        parts.append("### backdoor\n\n" + _markdown(header, attacks))
    text = "\n\n".join(parts) + "\n"
    write_text(out / "trust-grid.md", text)
    return text


def _attack_rows(cells: list[Cell], order: list[str]) -> list[list[str]]:
    rows = []
    for name in order:
        ours = [cell for cell in cells if cell["cell"] == name and cell["kind"] == "attack"]
        if not ours:
            continue
        success = interval([cell["after"]["success"]["value"] for cell in ours])
        clean = interval([cell["after"]["one_of_100"] for cell in ours])
        floor = interval([cell["before"]["success"]["value"] for cell in ours])
        rows.append(
            [
                name.removeprefix("attack-"),
                str(len(ours)),
                f"{success[0]:.3f} [{success[1]:.3f}, {success[2]:.3f}]",
                f"{clean[0]:.3f}",
                f"{floor[0]:.3f}",
            ]
        )
    return rows


def save_figures(cells: list[Cell], order: list[str], out: Path) -> list[Path]:
    """Draw a figure a pillar: a panel a measure, a row a protection; returns their paths."""
    rows = [n for n in order if any(c["cell"] == n and c["kind"] == "protection" for c in cells)]
    plain = [cell for cell in cells if cell["cell"] == "plain"]
    paths = []
    for pillar, shown in SHOWN.items():
        drawn = [(n, t) for n, t in shown if any(_values([c], n) for c in cells)]
        if not drawn or not rows:
            continue
        columns = min(4, len(drawn))
        lines = -(-len(drawn) // columns)
        size = (2.5 * columns + 1.4, (0.8 + 0.24 * (len(rows) + 1)) * lines)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for number, (measure, title) in enumerate(drawn):
            ax = axes[number // columns][number % columns]
            floor = summary(plain, measure, "before") if plain else None
            names = ["zero-shot", *rows] if pillar != "privacy" else rows
            for place, name in enumerate(names):
                ours = [cell for cell in cells if cell["cell"] == name]
                one = floor if name == "zero-shot" else summary(ours, measure)
                if one is None:
                    continue
                colour = "#666666" if name == "zero-shot" else "#0072B2"
                bars = [[max(0.0, one.value - one.low)], [max(0.0, one.high - one.value)]]
                ax.errorbar(one.value, place, xerr=bars, fmt="o", ms=4, capsize=2, color=colour)
            if floor is not None and pillar != "privacy":
                ax.axvline(floor.value, color="#666666", linewidth=0.8, linestyle=":")
            if pillar == "privacy":
                ax.axvline(0.5, color="black", linewidth=0.8)
            ax.set_yticks(range(len(names)), names, fontsize=8)
            ax.tick_params(axis="x", labelsize=7)
            ax.set_title(title, fontsize=8)
            ax.grid(axis="x", alpha=0.25)
        axes[0][0].invert_yaxis()
        for number in range(len(drawn), lines * columns):
            axes[number // columns][number % columns].set_visible(False)
        path = out / f"trust-{pillar}.svg"
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="svg")
        paths.append(path)
    return paths
