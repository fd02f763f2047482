"""What a run's files say, read once: scores before and after, who saw what, what an audit found."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvlm.config import Config, config_from
from fedvlm.config.reading import FLAT
from fedvlm.config.whole import SECTIONS, SETTINGS
from fedvlm.errors import ConfigError
from fedvlm.federation.result import Result
from fedvlm.reporting.numbers import finite

VANTAGES = {
    "V1": "server that sees single updates",
    "V2": "server that sees only the sum",
    "V3": "another client",
    "V4": "holder of the released adapter",
    "V5": "user of the similarity API",
}
"""Who may be looking, as `fedvlm.leakage.vantage` has it; that module imports the attacks too."""


@dataclass(frozen=True)
class Score:
    """A score with its interval, as fractions; the interval's ends are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Attack:
    """The best attack from a vantage: its AUC with its interval.

    Attributes:
        vantage: V1 … V5.
        name: The attack's.
        auc: Its AUC, with an interval that knows it was picked among others.
        row: All that the audit says of it.
    """

    vantage: str
    name: str
    auc: Score
    row: Mapping[str, Any]

    @property
    def better_than_guessing(self) -> bool:
        """Whether the interval lies above one half."""
        return self.auc.low is not None and self.auc.low > 0.5


@dataclass(frozen=True)
class Facts:
    """A run as its page tells it.

    Attributes:
        result: The run's result, which may be of rounds so far.
        config: Its configuration; settings of other versions are left out.
        audit: What `fedvlm audit` wrote; empty where there is none of this run.
        trust: What `fedvlm trust` wrote; empty likewise.
        deployed: Whether it ran between nodes on a SuperLink: then its folder holds what they were
            told.
    """

    result: Result
    config: Config
    audit: Mapping[str, Any]
    trust: Mapping[str, Any]
    deployed: bool = False

    def score(self, entry: Mapping[str, Any], part: str = "test") -> Score | None:
        """Return the score of a part of the data in a round's entry."""
        key = f"{part}_{self.result.metric}"
        value = finite(entry.get(key))
        if value is None:
            return None
        return Score(value, finite(entry.get(f"{key}_low")), finite(entry.get(f"{key}_high")))

    @property
    def before(self) -> Score | None:
        """The test's score before training."""
        found = self.score(self.result.rounds[0]) if self.result.rounds else None
        value = finite(self.result.summary.get("zero_shot"))
        return found or (None if value is None else Score(value))

    @property
    def after(self) -> Score | None:
        """The test's score after the last round, or what all nodes held out."""
        value = finite(self.result.summary.get("federated"))
        last = self.result.rounds[-1] if len(self.result.rounds) > 1 else {}
        found = self.score(last)
        if value is not None:
            return found if found and math.isclose(found.value, value) else Score(value)
        return self.score(last, "nodes")

    @property
    def on_nodes(self) -> bool:
        """Whether the score after is of pairs that nodes held out, not of the server's test."""
        return finite(self.result.summary.get("federated")) is None and self.after is not None

    def candidates(self, part: str = "test") -> int | None:
        """Return among how many captions an image's was sought; None where that isn't known."""
        entry = self.result.rounds[-1] if self.result.rounds else {}
        found = finite(entry.get(f"{part}_candidates"))
        return None if found is None else int(found)

    @property
    def best(self) -> dict[str, Attack]:
        """The attack of the highest AUC from each vantage, vantages in order."""
        out: dict[str, Attack] = {}
        for row in self.result.leakage:
            auc, vantage = finite(row.get("auc")), str(row.get("vantage"))
            if auc is None or vantage not in VANTAGES:
                continue
            if vantage not in out or auc > out[vantage].auc.value:
                score = Score(auc, finite(row.get("auc_low")), finite(row.get("auc_high")))
                out[vantage] = Attack(vantage, str(row.get("attack", "")), score, row)
        return dict(sorted(out.items()))

    @property
    def protect(self) -> str:
        """How updates were summed."""
        return str(self.result.protection.get("name") or self.config.protection.protect)

    @property
    def dp(self) -> str:
        """The kind of differential privacy, `none` without."""
        return self.config.privacy.dp

    @property
    def server(self) -> str:
        """The vantage of the server."""
        return "V1" if self.protect == "plain" else "V2"

    @property
    def abandoned(self) -> int:
        """How many rounds were abandoned."""
        return sum(bool(entry.get("abandoned")) for entry in self.result.rounds[1:])


def known_settings(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a stored configuration this version knows: by table, or by flat name."""
    out: dict[str, Any] = {}
    for key, value in told.items():
        if isinstance(value, Mapping) and key in SECTIONS:
            out |= {f"{key}.{k}": v for k, v in value.items() if f"{key}.{k}" in SETTINGS}
        elif key in FLAT and not isinstance(value, Mapping):
            out[key] = value
    return out


def config_of(told: Mapping[str, Any]) -> Config:
    """Return the configuration of a result, of an older version too."""
    try:
        return config_from(told)
    except ConfigError:
        pass
    config = Config()
    for key, value in known_settings(told).items():
        try:
            config = config_from({key: value}, config)
        except ConfigError:  # what another version allowed; the others still hold
            continue
    return config


def facts_of(result: Result, folder: Path | None = None) -> Facts:
    """Return a run's facts, with the audits of it that lie in its folder.

    Args:
        result: The run's result.
        folder: Its folder; None for a run that kept nothing.
    """
    config = config_of(result.config)
    if folder is None:
        return Facts(result, config, {}, {})
    audit, trust = (_read(folder / name) for name in ("audit.json", "trust.json"))
    if audit.get("rows") != result.leakage:  # of an earlier run in this folder
        audit = {}
    told = trust.get("identity")
    if isinstance(told, Mapping):
        run = {"seed": result.seed, "protect": config.protection.protect, "dp": config.privacy.dp}
        if any(told.get(key, value) != value for key, value in run.items()):
            trust = {}
    return Facts(result, config, audit, trust, (folder / "run-config.toml").exists())


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file; empty where there is none, or it isn't whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
