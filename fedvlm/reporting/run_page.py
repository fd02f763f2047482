"""A run as a page: the verdict first, then a figure, then all that stands behind them."""

from collections.abc import Iterable
from pathlib import Path

from fedvlm.federation.result import Result
from fedvlm.reporting import run_figures as figures
from fedvlm.reporting import run_tables as tables
from fedvlm.reporting.charts.figure import Figure
from fedvlm.reporting.facts import Facts, facts_of
from fedvlm.reporting.numbers import NONE, count, decimal, finite, plain, power
from fedvlm.reporting.settings import command_of, settings_of
from fedvlm.reporting.tables import mitigation_of
from fedvlm.reporting.unprotected import unprotected
from fedvlm.reporting.verdict import name_of, sentence, unit_of, verdict
from fedvlm.reporting.view import (
    Block,
    Cell,
    Code,
    Fold,
    Head,
    Note,
    Notes,
    Page,
    Section,
    Shown,
    Table,
    Text,
)

_PARAMETERS = {
    "server_sees": "the server sees",
    "mode": "mode",
    "weights": "weights of clients",
    "clip": "clip",
    "trust": "decrypted by",
    "lying_server": "a server that lies",
    "update_bound": "bound of a parameter's update",
    "bytes_per_parameter": "bytes a parameter",
    "neighbours": "neighbours of a client",
    "threshold": "shares that open a secret",
    "quorum": "clients that must agree",
    "min_clients": "fewest clients in a sum",
    "max_examples": "most examples that count",
}
_PRIVACY = {
    "neighboring_relation": "neighbouring relation",
    "noise_multiplier": "noise, as a multiple of the clip",
    "clip_norm": "clip norm",
    "sample_rate": "chance to be sampled",
    "steps_per_round": "steps a round",
    "expected_clients": "clients expected in a round",
    "least_noised": "fewest shares of noise in a sum",
}


def _blocks(*found: Block | Figure | None) -> list[Block]:
    return [Shown(one) if isinstance(one, Figure) else one for one in found if one is not None]


def _facts_table(title: str, rows: Iterable[tuple[str, str]]) -> Table | None:
    cells = [[Cell(name), Cell(value)] for name, value in rows]
    heads = [Head("", text=True), Head("", text=True)]
    return Table(title, heads, cells) if cells else None


def _leakage(facts: Facts) -> Section:
    found = _blocks(
        figures.vantage_figure(facts), figures.roc_figure(facts), tables.checks_notes(facts)
    )
    if not found:
        return Section(
            "leakage",
            "What leaks",
            [
                Text(
                    "Nobody has attacked this run yet, so nothing is said of its leakage. A run "
                    "with audit.transcript = true and data.membership = half is attacked by:"
                ),
                Code("fedvlm audit DIR"),
            ],
        )
    more = _blocks(tables.attacks_table(facts), tables.rebuilt_table(facts))
    if more:
        found.append(Fold("Every attack, with its rates", more))
    return Section("leakage", "What leaks, and to whom", found)


def _short(value: object) -> str:
    if not isinstance(value, float):
        return plain(value)
    return NONE if finite(value) is None else f"{value:.3g}"


def _privacy(facts: Facts) -> Section | None:
    told = facts.result.protection.get("parameters") or {}
    rows = [("how updates are summed", facts.protect)]
    rows += [(words, plain(told[key])) for key, words in _PARAMETERS.items() if key in told]
    privacy = facts.result.privacy or {}
    if privacy:
        spent = f"{decimal(privacy.get('epsilon'))} at δ {power(privacy.get('delta'))}"
        rows += [("differential privacy", facts.dp), (f"ε for each {unit_of(facts)}", spent)]
        rows += [(w, _short(privacy[k])) for k, w in _PRIVACY.items() if k in privacy]
    else:
        rows.append(("differential privacy", "none"))
    trained = mitigation_of(facts.config).removesuffix(", ")
    rows += [("trained with", trained)] if trained else []
    table = _facts_table("How it was protected", rows)
    return Section("protection", "How it was protected", [table]) if table else None


def _trust(facts: Facts) -> Section | None:
    found = _blocks(figures.trust_figure(facts))
    table = tables.trust_table(facts)
    if table is not None:
        found.append(Fold("Every measure, with its change", [table], open=not found))
    return Section("trust", "Trust", found) if found else None


def gaps_section(facts: Facts) -> Section:
    """Return what the run leaves open."""
    notes = [Note(gap.title, gap.text, gap.measured) for gap in unprotected(facts)]
    return Section("unprotected", "What this run does not protect", [Notes(notes)])


def _configuration(facts: Facts) -> Section:
    settings = settings_of(facts.config)
    heads = [Head("setting", text=True), Head("this run", text=True), Head("default", text=True)]
    differing = [[Cell(s.name), Cell(s.value), Cell(s.default)] for s in settings if s.differs]
    whole = [[Cell(s.name, s.words), Cell(s.value), Cell(s.default)] for s in settings]
    blocks: list[Block] = []
    if differing:
        blocks.append(Table("What differs from the default", heads, differing))
    else:
        blocks.append(Text("Every setting has its default."))
    blocks.append(Fold(f"All {len(settings)} settings", [Table("All settings", heads, whole)]))
    return Section("configuration", "Configuration", blocks)


def _origin(facts: Facts) -> Section:
    result = facts.result
    rows = [("seed", str(result.seed))]
    rows += [(name, str(version)) for name, version in result.versions.items()]
    for name, told in (
        ("hash of the data", result.data.get("fingerprint")),
        ("hash of its parts", result.data.get("splits")),
        ("hash of the adapter's schema", result.adapter.get("schema")),
        ("hash of the model", facts.audit.get("identity", {}).get("backbone")),
    ):
        if isinstance(told, str):
            rows.append((name, told))
    data = name_of(str(result.data.get("name", facts.config.data.source)))
    rows.insert(0, ("data", f"{data}, {count(result.data.get('pairs'))} pairs"))
    table = _facts_table("Versions, seed and hashes", rows)
    return Section(
        "again",
        "Make this again",
        _blocks(
            Code(command_of(facts.config, facts.deployed)),
            Fold("Versions, seed and hashes", [table]) if table else None,
        ),
    )


def run_page(facts: Facts, status: str = "") -> Page:
    """Return a run's page.

    Args:
        facts: What the run's files say.
        status: Where a run that goes on stands; empty for a finished one.
    """
    first = _blocks(figures.rounds_figure(facts), tables.gains_table(facts))
    where = _blocks(figures.elsewhere_figure(facts), figures.domains_figure(facts))
    cost = _blocks(tables.cost_table(facts))
    rounds = tables.rounds_table(facts)
    if rounds is not None:
        cost.append(Fold("Round by round", [rounds]))
    sections = [
        Section("gain", "", first) if first else None,
        Section("where", "Where it gained, and where not", where) if where else None,
        None if status else _leakage(facts),
        _trust(facts),
        _privacy(facts),
        Section("cost", "What it cost", cost) if cost else None,
        gaps_section(facts),
        _configuration(facts),
        _origin(facts),
    ]
    return Page(
        f"fedvlm · run, seed {facts.result.seed}",
        verdict(facts),
        sentence(facts),
        [each for each in sections if each is not None],
        status,
    )


def write_report(result: Result, folder: Path) -> Path:
    """Write `report.html` for a result, with the audits that lie in its folder.

    Args:
        result: The result of a run.
        folder: Where the run was, and where the page goes.

    Returns:
        The page's path.
    """
    from fedvlm.files import write_text
    from fedvlm.reporting.render import render

    path = folder / "report.html"
    write_text(path, render(run_page(facts_of(result, folder))))
    return path
