"""The trust grid's tables and contrasts, from its cells alone."""

from pathlib import Path
from typing import Any

import numpy as np

from fedvlm.errors import DataError
from fedvlm.files import write_text
from fedvlm.reporting.student import interval
from fedvlm.trust.columns_privacy import LISTED
from fedvlm.trust.contrasts import holm, over_seeds, tost
from fedvlm.trust.estimate import Estimate

Cell = dict[str, Any]
PRIMARY = ("tone_gap", "overconfidence", "backdoor")
MARGINS = {"tone_gap": 0.02, "overconfidence": 0.02, "backdoor": 0.02}
"""What counts as equal to plain, in the measures' own units: stated before any run."""
EQUAL = ("secagg", "secagg-active", "he", "inference-smpc", "inference-he")
"""Rows that should change nothing but who sees what."""
ATTACK_OF = {
    "secagg": "secagg",
    "secagg-active": "secagg-active",
    "example-8": "example-8",
    "client": "client",
}
"""Row → the attack under it; "plain" is what both are compared with."""
NOT_RUN = "not run"

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
        ("unseen_designer", "unseen domain − seen"),
        ("auroc_withheld_mcm", "AUROC withheld, MCM"),
        ("auroc_noise_mcm_at_1", "AUROC noise, MCM at τ = 1"),
        ("least_radius", "median least L∞, /255"),
        ("masking_square", "Square − PGD"),
        ("masking_transfer", "transfer − PGD"),
    ),
    "safety": (
        ("backdoor", "patch answered, nobody poisoned"),
        ("unsafe_queries", "unsafe@10, unsafe queries"),
        ("listed_found", "listed images found"),
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
MITIGATED = (
    ("one_of_100", "one of 100"),
    ("tone_gap", "tone gap"),
    ("tone_probe", "tone probe"),
    ("overconfidence", "confidence − accuracy"),
    ("ece", "ECE"),
    ("corrupted_3", "corrupted, 3"),
    ("least_radius", "least L∞"),
    ("unsafe_queries", "unsafe@10"),
    ("listed_found", "listed found"),
    ("membership_listed", "membership AUC, listed"),
    ("filter_tones", "false alarms, dark − light"),
    ("membership", "membership AUC, mean of designers"),
)
"""What is shown of mitigations."""


def column(cell: Cell, name: str) -> dict[str, Any] | None:
    """Return a column of a cell, None where it has none."""
    return next((one for one in cell.get("columns", ()) if one["name"] == name), None)


def _estimates(cells: list[Cell], name: str, which: str) -> list[Estimate]:
    """Return the resolved estimates of a measure, one a seed."""
    out = []
    for cell in cells:
        found = column(cell, name)
        if name == "membership":
            values = [
                one["after"]["value"]
                for one in cell.get("columns", ())
                if one["name"].startswith("membership_")
                and one["name"] != LISTED
                and one.get("after", {}).get("low") is not None
            ]
            if values:
                mean = float(np.mean(values))
                out.append(Estimate(mean, float("nan"), float("nan"), 20, 20))
            continue
        told = None if found is None else found.get(which)
        if told is not None and told.get("value") is not None:
            out.append(
                Estimate(told["value"], told["low"], told["high"], told["rows"], told["clusters"])
            )
    return out


def summary(cells: list[Cell], name: str, which: str = "after") -> Estimate | None:
    """Return a measure over the seeds that there are.

    Of one seed its own interval by concept. Of two the mean with what either's holds: Student's
    would be 13 standard errors. Of three and more the mean, with Student's half over seeds and the
    mean half by concept added in squares: seeds share their concepts, so that what the choice of
    concepts moves is not seen between seeds.
    """
    found = _estimates(cells, name, which)
    if not found:
        return None
    if len(found) == 1:
        return found[0]
    if len(found) == 2:
        low, high = min(one.low for one in found), max(one.high for one in found)
        mean = (found[0].value + found[1].value) / 2
        return Estimate(mean, low, high, found[0].rows, found[0].clusters)
    mean, low, high = interval([one.value for one in found])
    below = float(np.mean([one.value - one.low for one in found]))
    above = float(np.mean([one.high - one.value for one in found]))
    if np.isfinite((below, above)).all():
        low = mean - float(np.hypot(mean - low, below))
        high = mean + float(np.hypot(high - mean, above))
    return Estimate(mean, low, high, found[0].rows, found[0].clusters)


def of(cells: list[Cell], name: str) -> list[Cell]:
    """Return a row's cells, by seed."""
    return sorted((cell for cell in cells if cell["cell"] == name), key=lambda cell: cell["seed"])


def _by_concept(cell: Cell, name: str) -> dict[int, float] | None:
    found = cell["after"] if cell["kind"] == "attack" else column(cell, name)
    if found is None or "by_concept" not in found:
        return None
    return {int(key): value for key, value in found["by_concept"].items()}


def _differences(ours: list[Cell], theirs: list[Cell], name: str) -> list[dict[int, float]]:
    """Return a measure's differences by concept, for each seed that both rows have."""
    by_seed = {cell["seed"]: _by_concept(cell, name) for cell in theirs}
    out = []
    for cell in ours:
        mine, other = _by_concept(cell, name), by_seed.get(cell["seed"])
        if mine and other:
            out.append({key: mine[key] - other[key] for key in mine.keys() & other.keys()})
    return out


def _compared(cells: list[Cell], row: str, measure: str) -> tuple[list[Cell], list[Cell]]:
    """Return the cells that a measure of a row is read off, and those it is compared with."""
    if measure == "backdoor":
        return of(cells, f"attack-{ATTACK_OF.get(row, '')}"), of(cells, "attack-plain")
    if row.startswith("inference-"):
        return of(cells, row), of(cells, "inference-float")
    return of(cells, row), of(cells, row.partition("+")[0] if "+" in row else "plain")


def contrasts(cells: list[Cell], order: list[str]) -> list[list[str]]:
    """Return rows of contrasts to plain: each primary measure, Holm over those of a row.

    The backdoor's is that of the attack under the row's protection. Private inference is compared
    with the same images in the clear, and a mitigation with the run without it.
    """
    rng = np.random.default_rng(0)
    rows = []
    for name in order:
        if name.startswith("attack-") or name in ("plain", "inference-float"):
            continue
        ours = of(cells, name)
        if not ours or ours[0]["kind"] == "posthoc":
            continue
        found: dict[str, Estimate] = {}
        equal: dict[str, str] = {}
        for measure in PRIMARY:
            differences = _differences(*_compared(cells, name, measure), measure)
            try:
                found[measure] = over_seeds(differences, rng)
            except DataError:
                continue
            if name in EQUAL and found[measure].resolved:
                there = sorted(set().union(*differences))
                means = [
                    float(np.mean([one[key] for one in differences if key in one])) for key in there
                ]
                verdict = tost(means, MARGINS[measure])
                word = "equal" if verdict.equivalent else "not shown equal"
                equal[measure] = f", {word} within ±{verdict.margin:g}"
        adjusted = holm({m: one.p for m, one in found.items() if one.p is not None})
        row = [name, str(len(ours))]
        for measure in PRIMARY:
            if measure not in found:
                row.append(NOT_RUN if measure == "backdoor" else "–")
                continue
            mark = " *" if adjusted[measure] <= 0.05 else ""
            row.append(f"{found[measure]}{mark}{equal.get(measure, '')}")
        rows.append(row)
    return rows


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def spread(one: Estimate | None) -> str:
    """Return a number with its interval, a dash where there is none."""
    if one is None or not np.isfinite(one.value):
        return "–"
    if not np.isfinite((one.low, one.high)).all():
        return f"{one.value:.3f}"
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _row(name: str, ours: list[Cell], shown: tuple[tuple[str, str], ...]) -> list[str]:
    if not ours:
        return [name, "0", *(NOT_RUN for _ in shown)]
    return [name, str(len(ours)), *(spread(summary(ours, measure)) for measure, _ in shown)]


def protections(cells: list[Cell], order: list[str], rows: set[str]) -> list[str]:
    """Return a table a pillar: zero-shot and each protection."""
    plain, parts = of(cells, "plain"), []
    for pillar, shown in SHOWN.items():
        found = []
        if plain and pillar != "privacy":
            told = [spread(summary(plain, name, "before")) for name, _ in shown]
            found.append(["zero-shot", str(len(plain)), *told])
        found += [_row(name, of(cells, name), shown) for name in order if name in rows]
        header = ["row", "seeds", *(title for _, title in shown)]
        parts.append(f"#### {pillar.capitalize()}\n\n" + markdown(header, found))
    return parts


def mitigations(cells: list[Cell], order: list[str]) -> str:
    """Return the table of mitigations, each beside the run without it."""
    found = []
    for base in ("plain", "example-8"):
        found.append(_row(base, of(cells, base), MITIGATED))
        for name in order:
            if not name.startswith(f"{base}+"):
                continue
            ours = of(cells, name)
            if ours and ours[0]["kind"] == "posthoc":
                before = [{**cell, "columns": cell["unrepaired"]} for cell in ours]
                found.append(_row(f"{name}: without, same half", before, MITIGATED))
            found.append(_row(name, ours, MITIGATED))
    header = ["row", "seeds", *(title for _, title in MITIGATED)]
    return "#### Mitigations\n\n" + markdown(header, found)


def attacks(cells: list[Cell], order: list[str]) -> str:
    """Return the table of a backdoor: what a patch achieves, and what clean images lose."""
    rows = []
    for name in order:
        if not name.startswith("attack-"):
            continue
        ours, told = of(cells, name), name.removeprefix("attack-")
        if not ours:
            rows.append([told, "0", *(NOT_RUN for _ in range(3))])
            continue
        success = attack_success(ours)
        clean = float(np.mean([cell["after"]["one_of_100"] for cell in ours]))
        floor = float(np.mean([cell["before"]["success"]["value"] for cell in ours]))
        rows.append([told, str(len(ours)), spread(success), f"{clean:.3f}", f"{floor:.3f}"])
    header = ["attack, 1 of 10 clients", "seeds", "success", "clean, one of 100", "zero-shot"]
    return "#### Backdoor\n\n" + markdown(header, rows)


def attack_success(cells: list[Cell]) -> Estimate | None:
    """Return how often a stamped image is answered with the target, over the seeds of an attack."""
    told = [{"name": "success", "after": cell["after"]["success"]} for cell in cells]
    return summary([{"columns": [one]} for one in told], "success")


def inference(cells: list[Cell], order: list[str]) -> str:
    """Return the table of private inference, each beside the same images in the clear."""
    shown = (
        ("one_of_100", "one of 100"),
        ("tone_gap", "tone gap"),
        ("overconfidence", "conf. − acc."),
    )
    rows = []
    for name in order:
        if name.startswith("inference-"):
            ours = of(cells, name)
            row = _row(name.removeprefix("inference-"), ours, shown)
            for key, digits in (("same_first", ".3f"), ("largest_error", ".1e")):
                values = [cell[key] for cell in ours]
                worst = (
                    min(values, default=0.0) if key == "same_first" else max(values, default=0.0)
                )
                row.append(format(worst, digits) if values else NOT_RUN)
            rows.append(row)
    header = ["computed", "seeds", *(t for _, t in shown), "same first caption", "largest error"]
    return "#### Private inference\n\n" + markdown(header, rows)


def write_tables(cells: list[Cell], order: list[str], out: Path) -> str:
    """Write `trust-grid.md` from the cells that are there; returns its text."""
    rows = {
        name for name in order if not name.startswith(("attack-", "inference-")) and "+" not in name
    }
    header = [
        "row − plain; with +, row − the run before +",
        "seeds",
        "tone gap",
        "confidence − accuracy",
        "patch answered, attacked",
    ]
    found = contrasts(cells, order)
    parts = protections(cells, order, rows)
    if found:
        parts.append("#### Contrasts to plain\n\n" + markdown(header, found))
    parts += [attacks(cells, order), inference(cells, order), mitigations(cells, order)]
    text = "\n\n".join(parts) + "\n"
    write_text(out / "trust-grid.md", text)
    return text
