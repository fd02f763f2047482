"""The command `fedvlm audit DIR`, as a function for typer."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedvlm.federation.result import Result
from fedvlm.files import write_text
from fedvlm.leakage.audit import AuditResult
from fedvlm.leakage.audit_run import RunAudit, audit_run
from fedvlm.leakage.plot import save_roc
from fedvlm.leakage.units import Unit

REFUTED = 3
"""Exit code where a bound exceeds the claimed epsilon."""


def audit_command(
    folder: Annotated[Path, typer.Argument(help="folder of a run with transcript = true")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, not a table")] = False,
    per_client: Annotated[int, typer.Option(help="candidates a client", min=4)] = 200,
    alpha: Annotated[float, typer.Option(help="chance of a wrong figure", max=0.4)] = 0.05,
) -> None:
    """Attack a run from every vantage, and test the epsilon that it claims.

    Holds the transcript of a private run against the noise, clip, draws and releases that the run
    states, says what of it can't be checked, and what no check would notice. Writes `audit.json`,
    `audit-roc.png`, and the entry `leakage` of the run's result. Exit code 3: the claimed epsilon
    or the stated mechanism is refuted, or the split can't carry an audit.
    """
    found = audit_run(folder, per_client=per_client, alpha=alpha, progress=_progress)
    replace(Result.load(folder), leakage=found.rows()).save(folder)
    text = json.dumps(found.to_dict(), indent=2)
    write_text(folder / "audit.json", text + "\n")
    save_roc(found.best, folder / "audit-roc.png")
    if as_json:
        typer.echo(text)
    else:
        show(found)
    if found.refuted:
        check = found.canaries and found.canaries.conformance
        violated = check is not None and check.violated
        failed = [] if found.checks is None else [c for c in found.checks.checks if c.violated]
        told = [*([str(check)] if violated else []), *map(str, failed)]
        what = f"the mechanism is not what it states: {'; '.join(told)}" if told else ""
        typer.echo(what or "the claimed epsilon is refuted", err=True)
        raise typer.Exit(REFUTED)


def _progress(task: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{task} {done}/{total} ")


def _rate(one: AuditResult, which: int) -> str:
    rate = one.tpr[which]
    return str(rate.tpr) if rate.resolved else f"unresolved ({rate.tpr.value:.3f})"


def show(found: RunAudit) -> None:
    """Print the grid of vantages and attacks."""
    table = Table(title=f"membership by vantage, {1 - found.alpha:.0%} over a vantage's attacks")
    for column in ("vantage", "attack", "AUC", "TPR@10%", "TPR@1%", "TPR@0.1%", "ε ≥"):
        table.add_column(column, overflow="fold")
    for one in found.results:
        lower = one.epsilon_lower
        table.add_row(
            one.vantage,
            one.attack,
            str(one.auc),
            *(_rate(one, which) for which in range(3)),
            "–" if lower is None else f"{lower:.2f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    if found.identity.get("decrypted_by"):
        console.print(f"V2 is also the view of whoever decrypts: {found.identity['decrypted_by']}")
    for vantage, reason in found.absent.items():
        console.print(f"{vantage}: {reason}")
    _show_canaries(found, console)
    for row in found.reconstructions:
        console.print(
            f"{row.vantage} {row.attack}: members {row.members:.3f}, non-members "
            f"{row.non_members:.3f} {row.unit}; difference {row.difference:.3f} "
            f"[{row.low:.3f}, {row.high:.3f}] over {row.examples} pairs"
        )
    _show_checks(found, console)
    for one in found.results:
        if one.hint:
            console.print(f"{one.vantage} {one.attack}: {one.hint}")
    console.print(f"blind baseline on the untouched backbone: AUC {found.baseline} (99.9 %)")
    claim = found.claim
    if claim is None:
        console.print("no epsilon claimed")
    elif claim.unit is Unit.SAMPLE:
        console.print(f"claimed: epsilon {claim.epsilon:.2f} at delta {claim.delta:g}, per sample")
    else:
        console.print(
            f"claimed: epsilon {claim.epsilon:.2f} per client; attacks on samples neither confirm "
            "nor refute it, canaries that are clients do"
        )


def _show_canaries(found: RunAudit, console: Console) -> None:
    """Print what planted canaries show."""
    if found.canaries is None:
        return
    for one in found.canaries.results:
        lower = one.epsilon_lower
        bound = f"no bound: {one.no_bound}" if lower is None else f"ε ≥ {lower:.2f} per {one.unit}"
        tested = {None: "no claim here", False: "claim stands", True: "claim refuted"}[one.refuted]
        console.print(
            f"{one.vantage} canaries: AUC {one.auc}, {bound} ({tested}); planted ones are "
            f"{found.canaries.exposure[one.vantage]} bits more exposed"
        )
    if found.canaries.andrew is not None:
        console.print(f"canaries, Andrew's estimate: ε ≈ {found.canaries.andrew:.2f} per client")
    if found.canaries.power is not None:
        console.print(f"canaries: {found.canaries.power}")
    if found.canaries.conformance is not None:
        console.print(f"mechanism: {found.canaries.conformance}")


def _show_checks(found: RunAudit, console: Console) -> None:
    """Print what the transcript says of the mechanism, what isn't checked, what isn't seen."""
    if found.checks is None:
        return
    for check in found.checks.checks:
        console.print(f"checked: {check}")
        console.print(f"    would not see: {check.unseen}")
    for reason in found.checks.unchecked:
        console.print(f"not checked: {reason}")
