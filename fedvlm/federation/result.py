"""What a run found: frozen, JSON, self-describing; tables and plots are rebuilt from it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from fedvlm.errors import ConfigError
from fedvlm.files import write_text

_PACKAGES = ("fedvlm", "torch", "flwr", "transformers", "peft", "numpy")
FILE = "result.json"


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
    return {name: metadata.version(name) for name in _PACKAGES}


def summary_of(
    history: Sequence[Mapping[str, Any]],
    lines: Mapping[str, float],
    personal: bool,
    metric: str,
) -> dict[str, float | None]:
    """Return what a run comes to so far: before training, and after the last round.

    Args:
        history: Entries by round; entry 0 is before training. May be empty.
        lines: References by name, where they were asked for.
        personal: Whether nodes keep a half of the adapter: the other one alone is no adapter
            whose score would mean anything.
        metric: The task's.
    """
    first = history[0] if history else {}
    end = history[-1] if len(history) > 1 else {}
    last = {} if personal else end
    summary: dict[str, float | None] = {
        "zero_shot": first.get(f"test_{metric}"),
        "local_only": lines.get("local_only"),
        "local_only_best": lines.get("local_only_best"),
        "federated": last.get(f"test_{metric}"),
        "central": lines.get("central"),
    }
    for part in ("ood", "withheld", "retention"):
        key = f"{part}_{metric}"
        summary[f"{part}_zero_shot"] = first.get(key)
        summary[f"{part}_federated"] = last.get(key)
    summary["ood_central"] = lines.get("ood_central")
    if "nodes_one_of_100" in end:  # personal parts included, as each node has its own
        summary["nodes_federated"] = end["nodes_one_of_100"]
    return summary


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        summary: The metric (one-of-100 retrieval, or exact match of answers) as fractions:
            `zero_shot`, `local_only`, `local_only_best`, `federated`, `central` on the test part;
            `ood_*`, `withheld_*`, `retention_*` likewise. A reference that was not asked for is
            None. Under DP, and with heads, `control` too: what public pairs alone are worth.
        rounds: One entry a round: `round`, every metric, bytes and seconds.
        privacy: `unit`, `epsilon`, `delta`, `noise_multiplier`, or None without DP.
        protection: `name`, `mode`, `parameters` of how updates were summed.
        leakage: Rows `vantage`, `attack`, `auc`, …, filled in by an audit.
        config: Every setting.
        versions: Versions of the packages that decide a result.
        seed: The experiment's seed.
        data: Name, number of pairs, task and metric, fingerprints of data and splits, pairs per
            client.
        adapter: Kind, number of trained parameters, schema hash.
        seconds: Wall time by phase.
        best: The round of the highest validation score: `round`, `validation`, and the folder of
            its `adapter` within the run's; empty where there is no validation part.
    """

    summary: dict[str, float | None]
    rounds: list[dict[str, Any]]
    privacy: dict[str, Any] | None
    protection: dict[str, Any]
    leakage: list[dict[str, Any]]
    config: dict[str, Any]
    versions: dict[str, str]
    seed: int
    data: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """What the summary quotes: `one_of_100`, or `exact_match` of models that answer."""
        return str(self.data.get("metric", "one_of_100"))

    def to_json(self) -> str:
        """Return the result as JSON."""
        return json.dumps(asdict(self), indent=2)

    def _repr_html_(self) -> str:
        """Return the verdict and the summary, for notebooks."""
        from fedvlm.reporting.notebook import html_of  # how it looks is another room's

        return html_of(self)

    def save(self, folder: Path) -> Path:
        """Write `result.json` into a folder, whole or not at all; returns its path."""
        path = folder / FILE
        write_text(path, self.to_json() + "\n")
        return path

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """Read the result of a run's folder, or a result file itself.

        Raises:
            ConfigError: There is none, or it can't be read.
        """
        path = folder / FILE if folder.is_dir() else folder
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"no result at {path}: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is not a result of this library: {error}") from error

    def without_times(self) -> dict[str, Any]:
        """Return the result less what depends on the clock and the machine's load."""
        out = asdict(self)
        out.pop("seconds")
        for entry in out["rounds"]:
            for key in [key for key in entry if key.endswith("_seconds")]:
                entry.pop(key)
        return out
