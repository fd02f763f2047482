"""What is compared: a base configuration, rows, columns, adapters and seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvlm.compare.columns import GROUPS
from fedvlm.compare.rows import ROWS, chosen, kind_of, settings_of
from fedvlm.config import Config, config_from
from fedvlm.config.adapter import KINDS
from fedvlm.config.reading import read_toml
from fedvlm.errors import ConfigError

TABLE = "compare"
"""Table of the TOML file that says what to compare; all others are the run's settings."""
_KEYS = ("adapters", "rows", "columns", "seeds", "settings")


@dataclass(frozen=True)
class Effort:
    """How much is looked at in each cell.

    Attributes:
        rounds: Rounds at most, None for the configuration's.
        per_client: Candidates a client in a membership audit.
        canaries: Canary clients of the twin run that tests client-level claims; 0 for no twin.
        altered: Images that the trust audit alters.
        designers: Sets of tones a concept.
        images: Images that are classified privately.
        reference_epochs: Epochs of local-only and central training at most, None for the
            configuration's.
    """

    rounds: int | None = None
    per_client: int = 200
    canaries: int = 64
    altered: int = 200
    designers: int = 2
    images: int = 64
    reference_epochs: int | None = None


FULL = Effort()
QUICK = Effort(2, 60, 32, 100, 1, 16, 3)


@dataclass(frozen=True)
class Spec:
    """A comparison to make.

    Attributes:
        base: What all rows share; its protection and DP are not looked at.
        rows: Names of protections.
        groups: Groups of columns.
        adapters: Kinds of adapters.
        seeds: Of the experiments, each a cell of its own.
        settings: Row, or row and adapter (`own-8/lora`), → settings of that row alone, such as the
            rate that was chosen for it. What names no adapter comes first.
        effort: How much is looked at.
        quick: Whether that is the quick grid's.
        options: What the command line asked for beside the file.
    """

    base: Config
    rows: tuple[str, ...] = tuple(ROWS)
    groups: tuple[str, ...] = tuple(GROUPS)
    adapters: tuple[str, ...] = ("lora",)
    seeds: tuple[int, ...] = (0,)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    effort: Effort = FULL
    quick: bool = False
    options: tuple[str, ...] = ()

    def config(self, row: str, adapter: str, seed: int, **more: Any) -> Config:
        """Return the run of a cell.

        Raises:
            ConfigError: The combination can't be; the message says why.
        """
        wanted: dict[str, Any] = {"adapter": {"kind": adapter}, "seed": seed}
        wanted |= settings_of(ROWS[row]) | {"references": False}
        rounds = self.base.training.rounds
        if self.effort.rounds is not None:
            rounds = min(rounds, self.effort.rounds)
        # One sum, released once: more rounds aren't refused as a fault of the comparison's.
        wanted["rounds"] = 1 if adapter == "prototypes" else rounds
        if self.attacked:
            wanted |= {"membership": "half", "transcript": True}
        kind = kind_of(row)
        for name in (f"all/{adapter}", kind, row, f"{kind}/{adapter}", f"{row}/{adapter}"):
            wanted |= self.settings.get(name, {})
        if self.effort.rounds is not None and "rounds" in wanted:
            wanted["rounds"] = min(wanted["rounds"], self.effort.rounds)
        return config_from(wanted | more, self.base)

    @property
    def attacked(self) -> bool:
        """Whether runs must be such that they can be attacked."""
        return bool({"attack", "epsilon"} & set(self.groups))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read `0,1,2`.

    Raises:
        ConfigError: Something isn't a whole number from 0, or stands there twice.

    Example:
        >>> parse_seeds("0, 2")
        (0, 2)
    """
    try:
        found = tuple(int(each) for each in text.split(","))
    except ValueError:
        found = (-1,)
    if min(found) < 0 or len(set(found)) < len(found):
        raise ConfigError(f"seeds are different whole numbers from 0, as 0,1,2; got {text!r}")
    return found


def _split(text: str | None) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()] if text else []


def _own(told: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Check the file's table of what to compare."""
    unknown = sorted(set(told) - set(_KEYS))
    if unknown:
        raise ConfigError(f"{path}: [compare] has no key {unknown[0]!r}; known: {', '.join(_KEYS)}")
    kinds = {kind_of(name) for name in ROWS} | set(ROWS)
    for name, settings in told.get("settings", {}).items():
        row, _, adapter = name.partition("/")
        if row not in kinds | {"all"} or (adapter and adapter not in KINDS):
            raise ConfigError(
                f"{path}: [compare.settings] names {name!r}; it takes a row ({', '.join(ROWS)}), "
                "or a row and an adapter, as own-8/lora, or all/lora"
            )
        config_from(dict(settings))  # names what is wrong before anything runs
    for key in ("adapters", "rows", "columns"):
        value = told.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ConfigError(f"{path}: [compare] {key} takes a list of names; got {value!r}")
    return dict(told)


def read_spec(
    path: Path,
    *,
    rows: str | None = None,
    columns: str | None = None,
    adapters: str | None = None,
    seeds: str | None = None,
    quick: bool = False,
) -> Spec:
    """Read what to compare from a TOML file and the command line, which comes first.

    Args:
        path: Settings of the runs, and perhaps a table `[compare]` with lists `adapters`, `rows`,
            `columns` and `seeds`, and tables `[compare.settings."own-8/lora"]` of settings.
        rows: Names by commas; None takes the file's, or all.
        columns: Groups by commas.
        adapters: Kinds by commas; None takes the file's, or the configuration's own.
        seeds: Whole numbers by commas; None takes the file's, or the configuration's own.
        quick: Fewer rounds, candidates and images, and one seed.

    Raises:
        ConfigError: The file, or a name, is wrong.
    """
    told = read_toml(path)
    own = _own(told.pop(TABLE, {}), path)
    try:
        base = config_from(told)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    kinds = _split(adapters) or own.get("adapters") or [base.adapter.kind]
    found = own.get("seeds", [base.training.seed])
    numbers = parse_seeds(seeds) if seeds else parse_seeds(",".join(map(str, found)))
    given = {"--rows": rows, "--columns": columns, "--adapters": adapters, "--seeds": seeds}
    options = [*(["--quick"] if quick else [])]
    for name, value in given.items():
        options += [name, value] if value else []
    return Spec(
        base,
        chosen(_split(rows) or own.get("rows", []), ROWS, "row"),
        chosen(_split(columns) or own.get("columns", []), GROUPS, "group of columns"),
        chosen(kinds, dict.fromkeys(KINDS), "adapter"),
        numbers[:1] if quick and not seeds else numbers,
        own.get("settings", {}),
        QUICK if quick else FULL,
        quick,
        tuple(options),
    )
