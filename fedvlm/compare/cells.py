"""Where cells are kept: a folder for each, named by a hash of all that decides it.

A cell is a run and what was measured of it, stage by stage. A stage whose file is there isn't
measured again, so that a stopped comparison goes on, and further columns cost no further run.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvlm.config import Config
from fedvlm.config.whole import UNDECIDED
from fedvlm.files import write_text

_TOOK, _WHY = "took.json", "why-not.txt"
_VERSION = 1  # raise it when what a stage writes changes


def content_hash(**parts: Any) -> str:
    """Return a hash of what JSON can say, 12 hex digits."""
    text = json.dumps([_VERSION, parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def decided(config: Config) -> dict[str, Any]:
    """Return the settings that decide a run, and whether it keeps a transcript."""
    told = config.by_name()
    return {k: v for k, v in told.items() if k not in UNDECIDED or k == "audit.transcript"}


@dataclass(frozen=True)
class CellFolder:
    """The folder of a cell.

    Attributes:
        path: `DIR/cells/NAME-HASH`.
    """

    path: Path

    @classmethod
    def of(
        cls, out: Path, name: str, config: Config, inputs: Mapping[str, str], versions: Any
    ) -> "CellFolder":
        """Return the folder of a run: its name, and a hash of settings, inputs and versions."""
        digest = content_hash(config=decided(config), inputs=dict(inputs), versions=versions)
        return cls(out / "cells" / f"{name}-{digest}")

    @property
    def run(self) -> Path:
        """The run's own folder."""
        return self.path / "run"

    @property
    def files(self) -> int:
        """How many stages are kept, the run counted as one."""
        kept = sum(one.name != _TOOK for one in self.path.glob("*.json"))
        return kept + (self.run / "result.json").exists()

    @property
    def left_out(self) -> str:
        """Why there was no run when the cell was last tried; empty where nothing went wrong."""
        try:
            return (self.path / _WHY).read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def leave(self, why: str) -> None:
        """Keep why there is no run, for whoever only looks; the next try doesn't read it."""
        write_text(self.path / _WHY, why + "\n")

    @property
    def seconds(self) -> dict[str, float]:
        """Wall and processor seconds that the cell has taken so far, `wall` and `cpu`."""
        try:
            return json.loads((self.path / _TOOK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"wall": 0.0, "cpu": 0.0}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add what the block takes to the cell's seconds, stopped or not."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            told = {name: round(value + spent[name], 2) for name, value in self.seconds.items()}
            write_text(self.path / _TOOK, json.dumps(told) + "\n")

    def _file(self, stage: str, sizes: Mapping[str, Any]) -> Path:
        return self.path / f"{stage}-{content_hash(**sizes)}.json"

    def has(self, stage: str, **sizes: Any) -> bool:
        """Return whether a stage was measured."""
        return self._file(stage, sizes).exists()

    def kept(self, stage: str, measure: Callable[[], dict[str, Any]], **sizes: Any) -> Any:
        """Return what a stage measured: from its file, or measured now and written.

        Args:
            stage: Its name.
            measure: Measures it; what it raises leaves no file, and is tried again another time.
            sizes: What decides it beside the run; part of the file's name.
        """
        path = self._file(stage, sizes)
        try:
            return json.loads(path.read_text(encoding="utf-8"))["found"]
        except (OSError, ValueError, KeyError):
            pass  # not measured yet, or broken
        start = time.perf_counter()
        found = measure()
        told = {"stage": stage, "sizes": sizes, "seconds": round(time.perf_counter() - start, 2)}
        write_text(path, json.dumps(told | {"found": found}) + "\n")
        return found
