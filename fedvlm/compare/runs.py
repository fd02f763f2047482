"""Two finished runs, or two sets of seeds, side by side."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedvlm.config import config_from
from fedvlm.errors import ConfigError
from fedvlm.federation.result import FILE, Result
from fedvlm.reporting.student import interval
from fedvlm.trust.contrasts import t_interval

_SEED = re.compile(r"seed-(\d+)")
_PARTS = ("test", "ood", "withheld", "retention")
_ANY = ("training.seed",)  # paired by it, so that it's no difference


@dataclass(frozen=True)
class Metric:
    """A metric of both sides.

    Attributes:
        name: As in the results.
        unit: `fraction`, `bytes`, `s`, or empty.
        one: Value and ends of a 95 % interval, None where there is none.
        other: The same of the second side.
        change: other − one: value, ends, or None where nothing pairs.
        pairs: How many values were paired.
        paired_by: `seed`, `domain`, or empty.
    """

    name: str
    unit: str
    one: tuple[float, float | None, float | None]
    other: tuple[float, float | None, float | None]
    change: tuple[float, float | None, float | None]
    pairs: int = 0
    paired_by: str = ""

    @property
    def told_apart(self) -> bool:
        """Whether the change's interval leaves zero out."""
        _, low, high = self.change
        return low is not None and high is not None and (low > 0 or high < 0)


@dataclass(frozen=True)
class RunsCompared:
    """What differs between two runs.

    Attributes:
        names: The folders.
        seeds: Seeds of each side.
        settings: Setting → both values, where they differ.
        origins: Versions, data and splits that differ: name → both.
        metrics: Side by side.
        notes: What to know before reading them.
    """

    names: tuple[str, str]
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    settings: dict[str, tuple[Any, Any]]
    origins: dict[str, tuple[Any, Any]]
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "runs": list(self.names),
            "seeds": [list(each) for each in self.seeds],
            "settings": {k: list(v) for k, v in self.settings.items()},
            "origins": {k: list(v) for k, v in self.origins.items()},
            "metrics": [vars(one) | {"told_apart": one.told_apart} for one in self.metrics],
            "notes": list(self.notes),
        }


def results_in(folder: Path) -> dict[int, Result]:
    """Return a run by its seed, or every run of a folder of seeds.

    Raises:
        ConfigError: There is neither.
    """
    if (folder / FILE).exists():
        found = Result.load(folder)
        return {found.seed: found}
    held = [p for p in sorted(folder.iterdir()) if _SEED.fullmatch(p.name) and (p / FILE).exists()]
    if not held:
        raise ConfigError(f"{folder} holds no finished run: neither {FILE} nor seed-0/{FILE} …")
    return {one.seed: one for one in map(Result.load, held)}


def compare_runs(one: Path, other: Path) -> RunsCompared:
    """Compare two finished runs, or two folders of seeds (`fedvlm simulate --seeds`).

    Metrics are paired by seed where both sides have at least two seeds in common, and by domain
    where there is one run a side and both name the same domains; else two intervals stand side by
    side, and the change has none.

    Raises:
        ConfigError: A folder holds no finished run.
    """
    a, b = results_in(one), results_in(other)
    first, second = next(iter(a.values())), next(iter(b.values()))
    settings = _differing(
        config_from(first.config).by_name(), config_from(second.config).by_name(), _ANY
    )
    origins = _differing(first.versions, second.versions)
    for key in ("fingerprint", "splits"):
        ours, theirs = first.data.get(key), second.data.get(key)
        if ours != theirs and (len(a), len(b)) == (1, 1):
            origins[f"data {key}"] = (_short(ours), _short(theirs))
    notes = []
    if first.metric != second.metric:
        notes.append(
            f"the metrics differ ({first.metric}, {second.metric}): accuracies are no contrast"
        )
    if "data splits" in origins:
        notes.append("the runs were scored on other splits: changes hold for no common images")
    metrics = _metrics(a, b) if first.metric == second.metric else ()
    return RunsCompared(
        (str(one), str(other)),
        (tuple(a), tuple(b)),
        settings,
        origins,
        tuple(metrics),
        tuple(notes),
    )


def _short(value: Any) -> str:
    return "not told, under DP" if value is None else str(value)[:12]


def _differing(
    one: Mapping[str, Any], other: Mapping[str, Any], left_out: tuple[str, ...] = ()
) -> dict[str, tuple[Any, Any]]:
    names = [*one, *(k for k in other if k not in one)]
    return {
        k: (one.get(k), other.get(k))
        for k in names
        if k not in left_out and one.get(k) != other.get(k)
    }


def _values(result: Result) -> dict[str, tuple[str, float]]:
    """Return every metric of a run that is worth a line: name → unit and value."""
    last, out = result.rounds[-1], {}
    for part in _PARTS:
        for name in (f"{part}_{result.metric}",):
            if last.get(name) is not None:
                out[name] = ("fraction", float(last[name]))
    for key in last:
        if key.startswith("domain_") or key == "worst_domain":
            out[key] = ("fraction", float(last[key]))
    if result.privacy and result.privacy.get("epsilon") is not None:
        out["epsilon"] = ("", float(result.privacy["epsilon"]))
    best: dict[str, float] = {}
    for row in result.leakage:
        best[row["vantage"]] = max(best.get(row["vantage"], 0.0), float(row["auc"]))
    out |= {f"membership AUC {v}": ("fraction", auc) for v, auc in sorted(best.items())}
    for key, unit in (
        ("upload_bytes_per_client", "bytes"),
        ("download_bytes_per_client", "bytes"),
        ("client_seconds", "s"),
        ("server_seconds", "s"),
    ):
        if last.get(key) is not None:
            out[key] = (unit, float(last[key]))
    return out


def _own_interval(result: Result, name: str) -> tuple[float | None, float | None]:
    last = result.rounds[-1]
    if name.startswith("membership AUC "):
        rows = [row for row in result.leakage if row["vantage"] == name[-2:]]
        best = max(rows, key=lambda row: row["auc"])
        return best["auc_low"], best["auc_high"]
    return last.get(f"{name}_low"), last.get(f"{name}_high")


def _side(runs: Mapping[int, Result], name: str) -> tuple[float, float | None, float | None]:
    found = [_values(one)[name][1] for one in runs.values() if name in _values(one)]
    if len(found) == 1:
        only = next(one for one in runs.values() if name in _values(one))
        return (found[0], *_own_interval(only, name))
    return interval(found)


def _metrics(a: Mapping[int, Result], b: Mapping[int, Result]) -> list[Metric]:
    shared = sorted(a.keys() & b.keys())
    first, second = next(iter(a.values())), next(iter(b.values()))
    names = [name for name in _values(first) if name in _values(second)]
    out = []
    for name in names:
        unit = _values(first)[name][0]
        one, other = _side(a, name), _side(b, name)
        both = [s for s in shared if name in _values(a[s]) and name in _values(b[s])]
        if len(both) > 1:
            gaps = [_values(b[s])[name][1] - _values(a[s])[name][1] for s in both]
            low, high = t_interval(np.array(gaps))
            change, by = (float(np.mean(gaps)), low, high), "seed"
            out.append(Metric(name, unit, one, other, change, len(both), by))
            continue
        out.append(Metric(name, unit, one, other, (other[0] - one[0], None, None)))
    if len(shared) < 2:
        out += _by_domain(first, second)
    return out


def _by_domain(one: Result, other: Result) -> list[Metric]:
    """Pair the test part's domains: few values, so that the interval is wide."""
    a, b = _values(one), _values(other)
    names = sorted(k for k in a.keys() & b.keys() if k.startswith("domain_"))
    if len(names) < 2:
        return []
    left, right = (np.array([of[k][1] for k in names]) for of in (a, b))
    low, high = t_interval(right - left)
    change = (float((right - left).mean()), low, high)
    means = [(float(each.mean()), None, None) for each in (left, right)]
    name = "mean over domains"
    return [Metric(name, "fraction", means[0], means[1], change, len(names), "domain")]


def run_tables(found: RunsCompared) -> Group:
    """Return the comparison for a terminal."""
    from fedvlm.compare.show import _number

    differ = Table(title="what differs")
    for column in ("setting", "A", "B"):
        differ.add_column(column, overflow="fold")
    for name, (one, other) in {**found.settings, **found.origins}.items():
        differ.add_row(name, str(one), str(other))
    table = Table(title=f"A = {found.names[0]}, B = {found.names[1]}", caption="* told apart: 95 %")
    for column in ("metric", "A", "B", "B − A", "paired by"):
        table.add_column(column, overflow="fold")

    def text(
        told: tuple[float, float | None, float | None], unit: str, signed: bool = False
    ) -> str:
        value, low, high = told
        sign = "+" if signed and value > 0 else ""
        shown = sign + _number(value, unit) if value >= 0 else "−" + _number(-value, unit)
        if low is None or high is None:
            return shown
        ends = [("−" if e < 0 else "") + _number(abs(e), unit, True) for e in (low, high)]
        return f"{shown} [{ends[0]}, {ends[1]}]"

    for one in found.metrics:
        by = f"{one.pairs} {one.paired_by}s" if one.paired_by else "–"
        star = " *" if one.told_apart else ""
        change = text(one.change, one.unit, True) + star
        table.add_row(one.name, text(one.one, one.unit), text(one.other, one.unit), change, by)
    parts: list[Any] = [differ if differ.row_count else Text("the settings are the same"), table]
    return Group(*parts, *(Text(note) for note in found.notes))
