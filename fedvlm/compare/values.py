"""From what was measured of a cell to the values of its columns, and from seeds to one value."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedvlm.compare.columns import FORGOTTEN, TRUST, UNSEEN
from fedvlm.errors import one_line
from fedvlm.leakage.vantage import Vantage
from fedvlm.reporting.comparison import (
    ACCURACY,
    CLIENT_S,
    EPSILON,
    EPSILON_AUDITED,
    SERVER_S,
    UPLOAD,
    WORST_DOMAIN,
    Cell,
)
from fedvlm.trust.contrasts import t_interval

Told = Mapping[str, Any]
_DRAWS = 2000
_FPR = 0.01


def failed(error: Exception | str) -> Cell:
    """Return a cell that says why it has no value, in one line."""
    return Cell(failed=one_line(error))


def _cell(told: Told) -> Cell:
    return Cell(told["value"], told.get("low"), told.get("high"), note=told.get("note", ""))


def utility_cells(found: Told) -> dict[str, Cell | None]:
    """Return accuracy, worst domain, unseen domain and what was forgotten."""
    keys = (ACCURACY, WORST_DOMAIN, UNSEEN, FORGOTTEN)
    return {key: _cell(found[key]) if key in found else None for key in keys}


def gain_kept(found: Told, unprotected: Told | None, itself: bool) -> Cell:
    """Return a run's gain over zero-shot as a share of the gain without protection.

    Args:
        found: What was measured of the run's utility.
        unprotected: The same of the run without protection on the same adapter and seed.
        itself: Whether it is that run.
    """
    if itself:
        return Cell(1.0, note="by definition")
    if unprotected is None:
        return failed("the row `none` isn't there to compare with")
    if "by_concept" not in found or "by_concept" not in unprotected:
        return failed("this task has no captions by image to pair runs by")
    run, zero = (found["by_concept"][name] for name in ("run", "zero_shot"))
    plain = unprotected["by_concept"]["run"]
    shared = sorted(run.keys() & zero.keys() & plain.keys())
    gained = np.array([run[k] - zero[k] for k in shared])
    possible = np.array([plain[k] - zero[k] for k in shared])
    # The same concepts are drawn for both, so that what makes a concept easy cancels out.
    drawn = np.random.default_rng(0).integers(0, len(shared), (_DRAWS, len(shared)))
    whole = possible[drawn].mean(axis=1)
    if np.percentile(whole, 2.5) <= 0:
        return failed("the gain without protection can't be told from none")
    low, high = np.percentile(gained[drawn].mean(axis=1) / whole, (2.5, 97.5))
    return Cell(float(gained.mean() / possible.mean()), float(low), float(high))


def attack_cells(found: Told) -> dict[str, Cell | None]:
    """Return the best attack's AUC and TPR at FPR 1 % at each vantage."""
    out: dict[str, Cell | None] = {}
    for vantage in map(str, Vantage):
        best = found["best"].get(vantage)
        if best is None:
            why = found["absent"].get(vantage, "no attack has what it needs there")
            sees = "single updates not seen" if vantage == Vantage.V1 else "no view"
            out |= dict.fromkeys(
                (f"auc_{vantage}", f"tpr_{vantage}"), Cell("not seen", unit="text", note=sees)
            )
            if vantage != Vantage.V1:
                out |= dict.fromkeys((f"auc_{vantage}", f"tpr_{vantage}"), failed(why))
            continue
        out[f"auc_{vantage}"] = Cell(
            best["auc"], best["auc_low"], best["auc_high"], note=best["attack"]
        )
        rate = next(one for one in best["tpr_at_fpr"] if one["fpr"] == _FPR)
        note = best["attack"] + ("" if rate["resolved"] else ", unresolved: too few non-members")
        out[f"tpr_{vantage}"] = Cell(rate["tpr"], rate["low"], rate["high"], note=note)
    return out


def epsilon_cells(
    privacy: Told | None, attacked: Told | None, planted: Told | None
) -> dict[str, Cell | None]:
    """Return the claimed ε, and the largest lower bound at its own unit.

    Args:
        privacy: The entry `privacy` of the run's result; None without DP.
        attacked: What membership attacks found, where they could.
        planted: What canary clients found, where the claim is about clients.
    """
    if privacy is None:
        bound = _by_attacks(attacked, "nothing is claimed")
        return {EPSILON: None, EPSILON_AUDITED: bound}
    unit = "client" if "client" in str(privacy.get("unit")) else "example"
    claimed = Cell(float(privacy["epsilon"]), note=f"per {unit}, δ = {float(privacy['delta']):g}")
    if unit == "client":
        return {EPSILON: claimed, EPSILON_AUDITED: _by_canaries(planted)}
    return {EPSILON: claimed, EPSILON_AUDITED: _by_attacks(attacked, "per example")}


def _by_attacks(attacked: Told | None, what: str) -> Cell | None:
    if attacked is None or not attacked["epsilon_lower"]:
        return None
    vantage, bound = max(attacked["epsilon_lower"].items(), key=lambda one: one[1])
    refuted = "; REFUTED" if attacked.get("refuted") else ""
    return Cell(float(bound), note=f"{what}; by attacks at {vantage}{refuted}")


def _by_canaries(planted: Told | None) -> Cell | None:
    if planted is None:
        return None
    rows = [one for one in planted["rows"] if one["claimed"]]
    told = [one for one in rows if one["epsilon_lower"] is not None]
    if not told:
        why = rows[0]["no_bound"] if rows else "no vantage that the claim covers was seen"
        return failed(f"no bound: {why}")
    best = max(told, key=lambda one: one["epsilon_lower"])
    count = best["members"] + best["non_members"]
    note = f"per client; by {count} canaries at {best['vantage']}, in a run of their own"
    check = planted.get("conformance")
    wrong = any(one["refuted"] for one in rows) or bool(check and check["violated"])
    return Cell(float(best["epsilon_lower"]), note=note + ("; REFUTED" if wrong else ""))


def trust_cells(found: Told) -> dict[str, Cell | None]:
    """Return the trust audit's primary measures, each with its change from zero-shot."""
    out: dict[str, Cell | None] = {}
    for name in TRUST:
        column = found.get(name, {"why_not": "not measured"})
        after = column.get("after")
        if after is None or after.get("value") is None:
            why = column.get("why_not") or (after or {}).get("unresolved") or "not measured"
            out[name] = failed(why)
            continue
        change, note = column.get("change") or {}, ""
        if change.get("value") is not None:
            note = (
                f"change from zero-shot {change['value']:+.3f} "
                f"[{change['low']:+.3f}, {change['high']:+.3f}]"
            )
        out[name] = Cell(after["value"], after["low"], after["high"], note=note)
    return out


def cost_cells(found: Told) -> dict[str, Cell | None]:
    """Return bytes and seconds."""
    return {
        key: None if found.get(key) is None else Cell(float(found[key]))
        for key in (UPLOAD, CLIENT_S, SERVER_S)
    }


def over_seeds(key: str, cells: Sequence[Cell | None]) -> Cell | None:
    """Join a column's cells of several seeds: their mean with Student's 95 % interval.

    A claimed ε, and what is the same for all, has no interval; of audited ones the largest stands.
    One seed's cell stays as it is, with the interval that it has.
    """
    if len(cells) == 1:
        return cells[0]
    there = [cell for cell in cells if cell is not None]
    numbers = [cell for cell in there if isinstance(cell.value, int | float)]
    if not numbers:
        return there[0] if there else None
    if key == EPSILON_AUDITED:
        return max(numbers, key=lambda cell: float(cell.value or 0.0))
    values = np.array([cell.value for cell in numbers], dtype=np.float64)
    notes = list(dict.fromkeys(cell.note for cell in numbers if cell.note))
    told = f"{len(numbers)} of {len(cells)} seeds" if len(numbers) < len(cells) else ""
    note = "; ".join([*notes, *([told] if told else [])])
    if len(values) == 1 or np.ptp(values) == 0:
        only = numbers[0]
        return Cell(only.value, only.low, only.high, note=note)
    low, high = t_interval(values)
    return Cell(float(values.mean()), low, high, note=note)
