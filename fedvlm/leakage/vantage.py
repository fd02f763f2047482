"""Who is looking, and just what they saw: vantages, and the view that a run's transcript gives."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fedvlm.config import SimulationConfig, config_from
from fedvlm.errors import ConfigError, IntegrityError, ProtocolError
from fedvlm.federation.checkpoint import FILE as CHECKPOINT
from fedvlm.federation.result import Result

Vector = NDArray[np.float32]


class Vantage(StrEnum):
    """Who is looking."""

    V1 = "V1"
    V2 = "V2"
    V3 = "V3"
    V4 = "V4"
    V5 = "V5"

    @property
    def title(self) -> str:
        """What this party is."""
        return _TITLES[self]


_TITLES = {
    Vantage.V1: "server that sees single updates",
    Vantage.V2: "server that sees only the sum",
    Vantage.V3: "another client",
    Vantage.V4: "holder of the released adapter",
    Vantage.V5: "user of the similarity API",
}


class WrongVantageError(ProtocolError):
    """An attack was asked of somebody who didn't see what it needs."""


@dataclass(frozen=True, eq=False)
class View:
    """What one party saw of a run, and nothing more.

    A field is None where this party did not see it.

    Attributes:
        vantage: Who is looking.
        schema: Hash of the adapter's schema.
        initial: Shape (P,): the public adapter before training; everybody has it.
        globals_: Shape (T, P): the adapter that each round started from. V1, V2, V3.
        updates: Shape (T, K, P): each client's adapter less the round's global one. V1.
        aggregates: Shape (T, P): mean of the clients' updates. V1, V2; at V3 less the
            attacker's own part.
        attacker: The client that is looking. V3.
        released: Shape (P,): the final adapter. All but V5.
        api: Shape (P,): the final adapter behind an API. Attacks at V5 get cosines of it only;
            V1 to V4 may use it too.
    """

    vantage: Vantage
    schema: str
    initial: Vector
    globals_: Vector | None
    updates: Vector | None
    aggregates: Vector | None
    attacker: int | None
    released: Vector | None
    api: Vector

    def need(self, field: str, attack: str) -> NDArray:
        """Return what an attack needs.

        Args:
            field: A field of this class.
            attack: Who asks, for the message.

        Raises:
            WrongVantageError: This party didn't see it.
        """
        value = getattr(self, field)
        if value is None:
            raise WrongVantageError(
                f"{attack} needs {field}, which {self.vantage} ({self.vantage.title}) didn't see"
            )
        return value

    @classmethod
    def from_run(cls, folder: Path, vantage: Vantage | str) -> "View":
        """Read what one party saw from the folder of a run with `transcript = true`.

        Args:
            folder: The run's folder.
            vantage: Who is looking. A run without secure aggregation also gives the view V2: the
                server's as if it had seen the sum only.

        Raises:
            ConfigError: The run kept no transcript.
            WrongVantageError: V1 of a run whose server saw no single update.
            IntegrityError: The transcript is broken or of another adapter.
        """
        vantage = Vantage(vantage)
        record = _Record.read(folder)
        if vantage is Vantage.V1 and record.updates is None:
            raise WrongVantageError(
                f"the server of {folder} saw no single update (protect = {record.protection!r}): "
                "there is no view V1 of it"
            )
        inside = vantage in (Vantage.V1, Vantage.V2, Vantage.V3)
        aggregates, attacker = None, None
        if inside:
            aggregates = np.diff(record.adapters, axis=0)
        if inside and record.updates is not None:
            weights = record.weights
            if vantage is Vantage.V3:
                attacker = 0
                weights = np.where(np.arange(weights.shape[1]) == attacker, 0.0, weights)
            weights = weights / weights.sum(axis=1, keepdims=True)
            aggregates = np.einsum("tk,tkp->tp", weights, record.updates).astype(np.float32)
        return cls(
            vantage=vantage,
            schema=record.schema,
            initial=record.adapters[0],
            globals_=record.adapters[:-1] if inside else None,
            updates=record.updates if vantage is Vantage.V1 else None,
            aggregates=aggregates,
            attacker=attacker,
            released=None if vantage is Vantage.V5 else record.adapters[-1],
            api=record.adapters[-1],
        )


@dataclass(frozen=True, eq=False)
class _Record:
    """A transcript as it lies in a run's folder; never handed to an attack."""

    protection: str
    schema: str
    adapters: Vector
    updates: Vector | None
    weights: NDArray[np.float64]

    @classmethod
    def read(cls, folder: Path) -> "_Record":
        place = folder / "transcript"
        try:
            index = json.loads((place / "index.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{folder} kept no transcript; run it with transcript = true"
            ) from error
        except ValueError as error:
            raise IntegrityError(f"{place / 'index.json'} is not JSON") from error
        rounds = sorted(place.glob("round-*.npz"))
        if not rounds:
            raise ConfigError(f"{place} holds no round")
        adapters, updates, weights = [], [], []
        try:
            for path in rounds:
                with np.load(path, allow_pickle=False) as file:
                    start = file["global_adapter"]
                    adapters.append(start)
                    if "updates" in file.files and file["updates"].size:
                        # Clients by number; a round may have drawn a part of them.
                        order = np.argsort(file["clients"])
                        updates.append(file["updates"][order] - start)
                        weights.append(file["num_examples"][order].astype(float))
            with np.load(folder / CHECKPOINT, allow_pickle=False) as file:
                adapters.append(file["vector"])
            stacked = np.stack(adapters)
            single = np.stack(updates) if len(updates) == len(rounds) else None
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise IntegrityError(
                f"the transcript in {place} is broken, or not every client took part in every "
                f"round: {type(error).__name__}"
            ) from error
        if not np.isfinite(stacked).all():
            raise IntegrityError(f"the transcript in {place} holds values that are not finite")
        shares = np.stack(weights) if single is not None else np.ones((len(rounds), 1))
        return cls(index["protection"], index["schema"], stacked, single, shares)


def run_config(folder: Path) -> SimulationConfig:
    """Return the configuration of a run from its result."""
    return config_from(Result.load(folder).config)
