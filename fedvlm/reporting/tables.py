"""A result as tables on a terminal."""

from rich.table import Table

from fedvlm.config import Config, config_from
from fedvlm.federation.result import Result

LINES = (
    ("zero-shot", "zero_shot", "ood_zero_shot", "withheld_zero_shot", "retention_zero_shot"),
    (
        "public-only control",
        "control",
        "ood_control",
        "withheld_control",
        "retention_control",
    ),
    ("local only, mean of clients", "local_only", "ood_local_only", None, None),
    ("local only, best client", "local_only_best", None, None, None),
    ("federated", "federated", "ood_federated", "withheld_federated", "retention_federated"),
    ("central", "central", "ood_central", None, None),
)
"""Lines of the summary: name, and keys of test, OOD, withheld and retention."""


def percent(value: float | None) -> str:
    """Return a fraction as a percentage, a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def summary_rows(result: Result) -> list[list[str]]:
    """Return the summary as rows: name, test, OOD, withheld, retention, in percent."""
    get = result.summary.get
    rows = [[name, *(percent(get(key) if key else None) for key in keys)] for name, *keys in LINES]
    return [row for row in rows if any(cell != "–" for cell in row[1:])]


METRICS = {"one_of_100": "one of 100", "exact_match": "exact match"}
"""What people call a result's metric."""


def summary_columns(result: Result) -> tuple[str, ...]:
    """Return the header of `summary_rows`."""
    return (
        f"{METRICS[result.metric]}, %",
        "test",
        "out of distribution",
        "concepts nobody holds",
        "public concepts (forgetting)",
    )


def mitigation_of(config: Config) -> str:
    """Return what clients trained with beside the loss, ending in a comma; empty for nothing."""
    asked = config.mitigation
    weight = "" if asked.weight == 1 else f" (λ = {asked.weight:g})"
    told = f"mitigation {asked.kind}{weight}, " if asked.trains else ""
    return told + (f"weights by loss (q = {asked.loss_power:g}), " if asked.loss_power else "")


def summary_table(result: Result) -> Table:
    """Return the summary table: what was gained, and where not."""
    config = config_from(result.config)
    table = Table(
        title=f"{result.adapter['kind']} over {config.data.clients} clients, "
        f"{len(result.rounds) - 1} rounds, {config.protection.protect} aggregation, "
        f"{mitigation_of(config)}"
        f"seed {result.seed}"
    )
    first, *others = summary_columns(result)
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="right")
    for row in summary_rows(result):
        table.add_row(*row, style="bold" if row[0] == "federated" else None)
    return table


def cost_line(result: Result) -> str:
    """Return what the run cost, in one line."""
    last = result.rounds[-1]
    seconds = result.seconds
    if "upload_bytes_per_client" not in last:
        return ""
    return (
        f"{result.adapter['parameters']:,} parameters; each round and client "
        f"{last['upload_bytes_per_client'] / 1e6:.2f} MB up, "
        f"{last['download_bytes_per_client'] / 1e6:.2f} MB down; "
        f"prepare {seconds['prepare']:.0f} s, federate {seconds['federate']:.0f} s, "
        f"references {seconds['references']:.0f} s"
    )
