"""The grid: every row on every adapter and seed, one failed cell costing no other."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvlm.compare import measure, values
from fedvlm.compare.cells import CellFolder
from fedvlm.compare.columns import GROUPS, columns_of
from fedvlm.compare.inference import inference_grid
from fedvlm.compare.references import references
from fedvlm.compare.rows import ROWS
from fedvlm.compare.spec import Spec
from fedvlm.config import Config
from fedvlm.errors import ConfigError, FedVLMError
from fedvlm.federation.checkpoint import input_hashes
from fedvlm.federation.result import Result, versions
from fedvlm.federation.task import Progress, load_task, quiet
from fedvlm.reporting.comparison import Cell, Comparison, Grid, Row
from secure.errors import MissingExtraError, ParameterError, SecureError

Cells = dict[str, Cell | None]
Say = Callable[[str], None]
_NOT_YET = "not measured yet: the same command goes on"
_REFUSED = (ConfigError, ParameterError, MissingExtraError)
QUICK_NOTE = (
    "quick: at most {rounds} rounds, {per_client} candidates a client, {altered} altered images, "
    "one seed unless asked; figures of such a grid show how to read the full one"
)


@dataclass
class _Clock:
    """Says how long the cells that are left may take, by those that were run just now."""

    total: int
    done: int = 0
    took: list[float] = field(default_factory=list)

    def after(self, seconds: float, ran: bool) -> str:
        """Count a cell and say what is left."""
        self.done += 1
        if ran:
            self.took.append(seconds)
        left = self.total - self.done
        if not left or not self.took:
            return f"; {left} left" if left else ""
        minutes = left * sum(self.took) / len(self.took) / 60
        return f"; {left} left, about {minutes:.0f} min" if minutes >= 1 else f"; {left} left"


@dataclass
class Grower:
    """Makes a comparison cell by cell; what it has so far is a comparison too.

    Args:
        spec: What to compare.
        out: Folder of cells, runs and `comparison.json`.
        source: The configuration's file, for the command that makes it again.
        say: Told a line a cell.
        progress: Called with (task, done, total) within a cell.
        measures: Whether what isn't there is measured; else it is said to be missing.
    """

    spec: Spec
    out: Path
    source: str = "CONFIG.toml"
    say: Say = lambda line: None
    progress: Progress = quiet
    measures: bool = True
    inputs: dict[str, str] = field(default_factory=dict)
    cells: dict[tuple[str, str], list[Cells]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    folders: list[CellFolder] = field(default_factory=list)
    _unprotected: dict[tuple[str, int], Mapping[str, Any]] = field(default_factory=dict)
    _zero: dict[Any, Any] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _lines: list[dict[str, float]] = field(default_factory=list)
    _inference: Grid | None = None

    def run(self) -> Comparison:
        """Measure what isn't there yet, and return the whole; it is saved after each cell.

        Raises:
            FedVLMError: Data or model can't be loaded, so that no cell could be.
        """
        spec = self.spec
        start = time.perf_counter()
        self.inputs = input_hashes(load_task(spec.base, self.progress))
        jobs = [
            (adapter, row, seed)
            for adapter in spec.adapters
            for row in spec.rows
            for seed in spec.seeds
            if columns_of(spec.groups)  # private inference alone needs no federation
        ]
        clock = _Clock(len(jobs))
        for number, (adapter, row, seed) in enumerate(jobs, 1):
            before = time.perf_counter()
            cells, ran = self._cell(row, adapter, seed)
            seconds = time.perf_counter() - before
            self.cells.setdefault((row, adapter), []).append(cells)
            why = self.failures.get(_name(row, adapter, seed), "")
            told = why if why else f"{seconds:.0f} s" if ran else "kept"
            self.say(
                f"[{number}/{len(jobs)}] {ROWS[row].title}, {adapter}, seed {seed}: {told}"
                + clock.after(seconds, ran)
            )
            self.comparison().save(self.out)
        if jobs:
            self._references()
        if "inference" in spec.groups:
            before = time.perf_counter()
            self._inference = inference_grid(
                spec, self.out, self.inputs, self.progress, self.measures
            )
            self._took("inference", before)
            self.say(f"private inference: {time.perf_counter() - before:.0f} s")
        self._took("all", start)
        found = self.comparison()
        found.save(self.out)
        return found

    def _took(self, what: str, since: float) -> None:
        spent = self._seconds.get(what, 0.0) + time.perf_counter() - since
        self._seconds[what] = round(spent, 1)

    def _references(self) -> None:
        before = time.perf_counter()
        for seed in self.spec.seeds:
            try:
                found = references(
                    self.spec, seed, self.out, self.inputs, self.progress, self.measures
                )
                self._lines += [found] if found else []
            except (FedVLMError, SecureError) as error:
                self.failures[f"references, seed {seed}"] = f"failed: {error}"
        self._took("references", before)
        self.say(f"zero-shot, control and central: {time.perf_counter() - before:.0f} s")

    def _config(self, row: str, adapter: str, seed: int) -> tuple[Config, str]:
        """Return a cell's run, and why it can't be attacked, where it can't."""
        try:
            return self.spec.config(row, adapter, seed), ""
        except ConfigError as error:
            if not self.spec.attacked:
                raise
            return self.spec.config(row, adapter, seed, transcript=False), str(error)

    def _cell(self, row: str, adapter: str, seed: int) -> tuple[Cells, bool]:
        """Measure a cell; returns its columns, and whether anything had to be run."""
        first = columns_of(self.spec.groups)
        name, folder = _name(row, adapter, seed), None
        self.failures.pop(name, None)
        try:
            config, unseen = self._config(row, adapter, seed)
            folder = CellFolder.of(
                self.out, f"{row}-{adapter}-{seed}", config, self.inputs, versions()
            )
            self.folders.append(folder)
            before = folder.files
            if not self.measures and not (folder.run / "result.json").exists():
                why = folder.left_out or _NOT_YET
                return ({first[0].key: values.failed(why)} if first else {}), False
            with folder.timed():
                result = measure.federate(folder, config, self.progress)
                cells = self._stages(folder, config, result, unseen, row, adapter, seed)
        except Exception as error:  # of any kind: the other cells go on
            refused = isinstance(error, _REFUSED)
            self.failures[name] = _told(error)
            if folder is not None:
                folder.leave(self.failures[name])
            cell = values.failed(self.failures[name])
            return ({first[0].key: cell} if first else {}), not refused
        return cells, folder.files > before

    def _stages(
        self,
        folder: CellFolder,
        config: Config,
        result: Result,
        unseen: str,
        row: str,
        adapter: str,
        seed: int,
    ) -> Cells:
        spec, effort = self.spec, self.spec.effort
        cells: Cells = {}

        def stage(name: str, make: Callable[[], dict[str, Any]], **sizes: Any) -> Any:
            if not self.measures and not folder.has(name, **sizes):
                return values.failed(_NOT_YET)
            try:
                return folder.kept(name, make, **sizes)
            except Exception as error:  # of any kind: the other stages go on
                told = _told(error)
                self.failures[f"{_name(row, adapter, seed)}, {name}"] = told
                return values.failed(told)

        def spread(group: str, found: Any, make: Callable[[Any], Cells]) -> None:
            keys = [column.key for column in GROUPS[group]]
            cells.update(dict.fromkeys(keys, found) if isinstance(found, Cell) else make(found))

        if "utility" in spec.groups:
            found = stage("utility", lambda: measure.utility(folder.run, self.progress))
            spread("utility", found, values.utility_cells)
            if not isinstance(found, Cell):
                if row == "none":
                    self._unprotected[adapter, seed] = found
                plain = self._unprotected.get((adapter, seed))
                cells["gain_kept"] = values.gain_kept(found, plain, row == "none")
        attacked = None
        if spec.attacked:
            attacked = values.failed(unseen) if unseen else None
            if attacked is None:
                attacked = stage(
                    "attack",
                    lambda: measure.attack(folder.run, effort, self.progress),
                    per_client=effort.per_client,
                )
        if "attack" in spec.groups:
            spread("attack", attacked, values.attack_cells)
        if "epsilon" in spec.groups:
            planted = None
            if config.privacy.dp in ("client", "distributed") and effort.canaries:
                planted = stage(
                    "canaries",
                    lambda: measure.canaries(folder, config, effort, self.progress),
                    canaries=effort.canaries,
                )
            clear = None if isinstance(attacked, Cell) else attacked
            told = planted if not isinstance(planted, Cell) else None
            cells |= values.epsilon_cells(result.privacy, clear, told)
            if isinstance(planted, Cell):
                cells["epsilon_audited"] = planted
            elif isinstance(attacked, Cell) and told is None:
                cells["epsilon_audited"] = attacked
        if "trust" in spec.groups:
            found = stage(
                "trust",
                lambda: measure.trust(folder.run, effort, self._zero, self.progress),
                altered=effort.altered,
                designers=effort.designers,
            )
            spread("trust", found, values.trust_cells)
        if "cost" in spec.groups:
            spread("cost", measure.costs(folder.run), values.cost_cells)
        return cells

    def _spent(self) -> dict[str, float]:
        """Return seconds by phase; those of cells over all times that the comparison was made."""
        took = [folder.seconds for folder in self.folders]
        cells = {f"cells_{name}": round(sum(one[name] for one in took)) for name in ("wall", "cpu")}
        return {**cells, **self._seconds}

    def comparison(self) -> Comparison:
        """Return what is measured so far; what isn't says so."""
        spec, rows = self.spec, []
        columns = columns_of(spec.groups)
        for adapter in spec.adapters if columns else ():
            for row in spec.rows:
                found = self.cells.get((row, adapter))
                joined: Cells = {}
                if found is None:
                    joined = {columns[0].key: values.failed(_NOT_YET)} if columns else {}
                else:
                    for column in columns:
                        joined[column.key] = values.over_seeds(
                            column.key, [one.get(column.key) for one in found]
                        )
                rows.append(Row(ROWS[row].title, adapter, joined))
        means = {
            key: sum(line[key] for line in self._lines) / len(self._lines)
            for key in (self._lines[0] if self._lines else {})
        }
        note = QUICK_NOTE.format(**vars(spec.effort)) if spec.quick else ""
        return Comparison(
            columns,
            tuple(rows),
            inference=self._inference,
            references=means,
            config=_shared(spec),
            versions=versions(),
            seeds=spec.seeds,
            command=" ".join(["fedvlm compare", self.source, *spec.options]),
            seconds=self._spent(),
            note=note,
        )


def _told(error: Exception) -> str:
    """Say whether something was refused by the library, or failed, and why, in one line."""
    word = "refused" if isinstance(error, _REFUSED) else "failed"
    kind = "" if isinstance(error, FedVLMError | SecureError) else type(error).__name__
    return " ".join(f"{word}: {kind} {error}".split())


def _name(row: str, adapter: str, seed: int) -> str:
    return f"{ROWS[row].title}, {adapter}, seed {seed}"


def _shared(spec: Spec) -> dict[str, Any]:
    """Return the settings that all rows share, as far as a row without protection has them."""
    try:
        return spec.config("none", spec.adapters[0], spec.seeds[0]).to_dict()
    except ConfigError:
        return spec.base.to_dict()
