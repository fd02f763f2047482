"""A run's tables: what was gained, round by round, what it cost, attacks, checks and trust."""

from collections.abc import Mapping
from typing import Any

from fedvlm.reporting.facts import VANTAGES, Facts, Score
from fedvlm.reporting.numbers import (
    count,
    decimal,
    duration,
    finite,
    percent,
    power,
    signed,
    size,
)
from fedvlm.reporting.tables import LINES
from fedvlm.reporting.view import Cell, Head, Note, Notes, Table, number_cell

_PARTS = {
    "test": "test",
    "ood": "unseen domain",
    "withheld": "unseen concepts",
    "retention": "public concepts",
}
_AT_10, _AT_1, _AT_01 = 0.1, 0.01, 0.001


def score_cell(score: Score | None) -> Cell:
    """Return a cell of a score with its interval."""
    if score is None:
        return number_cell(percent(None), None)
    ends = (percent(score.low), percent(score.high))
    return number_cell(percent(score.value), score.value, *ends)


def _place(facts: Facts, name: str) -> Mapping[str, Any]:
    """Return the round whose intervals a line of the summary has."""
    rounds = facts.result.rounds
    where = {"zero-shot": 0, "federated": -1}.get(name)
    return rounds[where] if rounds and where is not None else {}


def gains_table(facts: Facts) -> Table | None:
    """Return what was gained and where not, with intervals where there are any."""
    rows, strong = [], []
    for name, *keys in LINES:
        entry, cells = _place(facts, name), []
        for part, key in zip(_PARTS, keys, strict=True):
            value = finite(facts.result.summary.get(key)) if key else None
            found = facts.score(entry, part)
            close = found is not None and value is not None and abs(found.value - value) < 1e-12
            cells.append(score_cell(found if close else None if value is None else Score(value)))
        if any(cell.order is not None for cell in cells):
            strong += [len(rows)] if name == "federated" else []
            rows.append([Cell(name), *cells])
    if not rows:
        return None
    used = [n for n in range(len(_PARTS)) if any(row[n + 1].order is not None for row in rows)]
    heads = [Head("", text=True)]
    for number in used:
        part = list(_PARTS)[number]
        items = finite((facts.result.data.get("parts") or {}).get(part))
        among = facts.candidates(part)
        told = [
            f"{count(items)} pairs" if items else "",
            f"among {among} captions" if among else "",
        ]
        heads.append(Head(_PARTS[part], ", ".join(t for t in told if t)))
    return Table(
        "What was gained",
        heads,
        [[row[0], *(row[n + 1] for n in used)] for row in rows],
        strong,
        "Small: 95 % intervals over test images."
        if any(cell.sub for row in rows for cell in row)
        else "",
    )


def rounds_table(facts: Facts) -> Table | None:
    """Return every round: scores, loss, ε, clients, bytes and seconds."""
    metric, rounds = facts.result.metric, facts.result.rounds
    columns = (
        (f"test_{metric}", "test", percent),
        (f"validation_{metric}", "validation", percent),
        (f"ood_{metric}", "unseen", percent),
        (f"nodes_{metric}", "on the nodes", percent),
        ("train_loss", "loss", lambda v: decimal(v, 3)),
        ("epsilon", "ε so far", decimal),
        ("clients", "clients", count),
        ("upload_bytes_per_client", "sent by a client", size),
        ("download_bytes_per_client", "received", size),
        ("client_seconds", "client's time", duration),
        ("server_seconds", "server's time", duration),
    )
    used = [each for each in columns if any(finite(e.get(each[0])) is not None for e in rounds)]
    if not used or len(rounds) < 2:
        return None
    body = []
    for entry in rounds:
        cells = [number_cell(show(entry.get(key)), finite(entry.get(key))) for key, _, show in used]
        name = "before" if entry["round"] == 0 else f"{entry['round']}"
        lost = f"abandoned: {entry['abandoned']}" if entry.get("abandoned") else ""
        body.append([Cell(name, lost, float(entry["round"])), *cells])
    heads = [Head("round"), *(Head(title) for _, title, _ in used)]
    return Table("Round by round", heads, body)


def cost_table(facts: Facts) -> Table | None:
    """Return what the run cost: bytes and seconds, a client and a round, and in all."""
    rounds = facts.result.rounds[1:]
    rows = []

    def mean(key: str) -> float | None:
        values = [v for entry in rounds if (v := finite(entry.get(key))) is not None]
        return sum(values) / len(values) if values else None

    for name, key, show in (
        ("sent by a client", "upload_bytes_per_client", size),
        ("received by a client", "download_bytes_per_client", size),
        ("a client's time", "client_seconds", duration),
        ("the server's time", "server_seconds", duration),
    ):
        value = mean(key)
        if value is None:
            continue
        total = value * len(rounds)
        rows.append([Cell(name), number_cell(show(value), value), number_cell(show(total), total)])
    if not rows:
        return None
    wall = [f"{name} {duration(v)}" for name, v in facts.result.seconds.items() if finite(v)]
    heads = [Head("", text=True), Head("a round"), Head("all rounds")]
    note = f"Wall time on the machine that ran it: {', '.join(wall)}." if wall else ""
    return Table("What it cost", heads, rows, note=note)


def _rate(row: Mapping[str, Any], fpr: float) -> Cell:
    for one in row.get("tpr_at_fpr") or []:
        if finite(one.get("fpr")) == fpr:
            if not one.get("resolved"):
                told = "too few non-members to tell"
                return Cell(percent(one.get("tpr")), told, finite(one.get("tpr")), "none")
            ends = (percent(one.get("low")), percent(one.get("high")))
            return number_cell(percent(one.get("tpr")), finite(one.get("tpr")), *ends)
    return number_cell(percent(None), None)


def attacks_table(facts: Facts) -> Table | None:
    """Return every attack from every vantage."""
    rows, strong = [], []
    best = {vantage: one.row for vantage, one in facts.best.items()}
    for row in facts.result.leakage:
        vantage = str(row.get("vantage"))
        if finite(row.get("auc")) is None:
            continue
        if best.get(vantage) is row:
            strong.append(len(rows))
        ends = (decimal(row.get("auc_low")), decimal(row.get("auc_high")))
        lower = finite(row.get("epsilon_lower"))
        rows.append(
            [
                Cell(str(row.get("attack", "")), VANTAGES.get(vantage, "")),
                Cell(vantage),
                number_cell(decimal(row["auc"]), finite(row["auc"]), *ends),
                _rate(row, _AT_10),
                _rate(row, _AT_1),
                _rate(row, _AT_01),
                number_cell(decimal(lower), lower),
            ]
        )
    if not rows:
        return None
    heads = [
        Head("attack", text=True),
        Head("from", "the vantage", text=True),
        Head("AUC", "0.5 is guessing"),
        Head("found at 10 % false", "true positives at 10 % false positives"),
        Head("at 1 %", "true positives at 1 % false positives"),
        Head("at 0.1 %", "true positives at 0.1 % false positives"),
        Head("ε at least", "what the attack proves, with confidence"),
    ]
    return Table("Every attack", heads, rows, strong)


def checks_notes(facts: Facts) -> Notes | None:
    """Return what the audit says of the run's claims: canaries, mechanism, what wasn't checked."""
    audit, notes = facts.audit, []
    claim = audit.get("claim")
    if isinstance(claim, Mapping):
        refuted = bool(audit.get("refuted"))
        told = f"ε {decimal(claim.get('epsilon'))} at δ {power(claim.get('delta'))}"
        told += f", by {claim.get('unit')}"
        word = "Refuted by this audit." if refuted else "Not refuted by this audit."
        notes.append(Note("Claimed", told, word, refuted))
    for row in (audit.get("canaries") or {}).get("rows") or []:
        bits = (row.get("exposure_bits") or {}).get("value")
        lower = finite(row.get("epsilon_lower"))
        told = f"AUC {decimal(row.get('auc'))}; {decimal(bits, 1)} bits more exposed than others"
        told += "" if lower is None else f"; ε at least {decimal(lower)}"
        notes.append(Note(f"Canaries, {row.get('vantage')}", told, bad=bool(row.get("refuted"))))
    checks = audit.get("checks") or {}
    for check in checks.get("checks") or []:
        bad = bool(check.get("violated"))
        title = f"Checked: {check.get('name')}"
        unseen = f"Would not see: {check.get('unseen')}"
        notes.append(Note(title, str(check.get("found")), unseen, bad))
    notes += [Note("Not checked", str(reason)) for reason in checks.get("not_checked") or []]
    base = audit.get("blind_baseline")
    if isinstance(base, Mapping):
        told = f"AUC {decimal(base.get('auc'))} [{decimal(base.get('low'))}, "
        told += f"{decimal(base.get('high'))}] by the untouched model: the split gives nothing away"
        notes.append(Note("Before training", told))
    return Notes(notes) if notes else None


def rebuilt_table(facts: Facts) -> Table | None:
    """Return what could be rebuilt of the pairs."""
    rows = []
    for one in facts.audit.get("reconstructions") or []:
        value = finite(one.get("difference"))
        ends = (decimal(one.get("low"), 3), decimal(one.get("high"), 3))
        rows.append(
            [
                Cell(str(one.get("attack")), str(one.get("unit", ""))),
                Cell(str(one.get("vantage"))),
                number_cell(decimal(one.get("members"), 3), finite(one.get("members"))),
                number_cell(decimal(one.get("non_members"), 3), finite(one.get("non_members"))),
                number_cell(decimal(value, 3), value, *ends),
            ]
        )
    if not rows:
        return None
    heads = [
        Head("what is rebuilt", text=True),
        Head("from", text=True),
        Head("of members"),
        Head("of others"),
        Head("difference"),
    ]
    return Table("What could be rebuilt", heads, rows)


def _estimate_cell(told: Any, change: bool = False) -> Cell:
    if not isinstance(told, Mapping) or finite(told.get("value")) is None:
        reason = str(told.get("unresolved", "")) if isinstance(told, Mapping) else ""
        return Cell(percent(None), reason, None, "none")
    value = float(told["value"])
    text = signed(value, 3) if change else decimal(value, 3)
    return number_cell(text, value, decimal(told.get("low"), 3), decimal(told.get("high"), 3))


def trust_table(facts: Facts) -> Table | None:
    """Return the trust audit's measures, zero-shot beside the run."""
    rows, strong = [], []
    for column in facts.trust.get("columns") or []:
        name = Cell(str(column.get("title")), str(column.get("pillar")))
        if column.get("why_not"):
            empty = Cell(percent(None), kind="none")
            why = Cell("not measured", str(column["why_not"]), None, "none")
            rows.append([name, empty, why, empty])
            continue
        if column.get("primary"):
            strong.append(len(rows))
        numbers = [_estimate_cell(column.get(key)) for key in ("before", "after")]
        rows.append([name, *numbers, _estimate_cell(column.get("change"), True)])
    if not rows:
        return None
    held = facts.trust.get("holm") or {}
    told = [f"{name.replace('_', ' ')} p = {decimal(p, 4)}" for name, p in held.items()]
    note = f"Change of the primary measures, Holm's correction: {'; '.join(told)}." if told else ""
    heads = [Head("measure", text=True), Head("zero-shot"), Head("this run"), Head("change")]
    return Table("Trust, measure by measure", heads, rows, strong, note)
