"""Who is looking, and just what they saw: vantages, and the view that a run's transcript gives."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fedvlm.config import Config, config_from
from fedvlm.errors import ConfigError, IntegrityError, ProtocolError
from fedvlm.federation.checkpoint import FILE as CHECKPOINT
from fedvlm.federation.result import Result
from fedvlm.leakage.partitions import Partitions

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
        updates: Shape (T, K, P): each client's adapter less the round's global one, by partition
            number; zero where a client took no part, or sent what isn't finite. V1.
        aggregates: Shape (T, P): what the released sum, noise included, did to the adapter. V1,
            V2; at V3 less the attacker's own part, where the sum is a weighted mean.
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
    def from_run(cls, folder: Path, vantage: Vantage | str, attacker: int = 0) -> "View":
        """Read what one party saw from the folder of a run with `transcript = true`.

        Args:
            folder: The run's folder.
            vantage: Who is looking. A run without secure aggregation also gives the view V2: the
                server's as if it had seen the sum only.
            attacker: Which client is looking at V3.

        Raises:
            ConfigError: The run kept no transcript.
            WrongVantageError: V1 of a run whose server saw no single update.
            IntegrityError: The transcript is broken or of another adapter.
        """
        vantage = Vantage(vantage)
        record = Record.read(folder)
        if vantage is Vantage.V1 and record.updates is None:
            raise WrongVantageError(
                f"the server of {folder} saw no single update (protect = {record.protection!r}): "
                "there is no view V1 of it"
            )
        inside = vantage in (Vantage.V1, Vantage.V2, Vantage.V3)
        aggregates = np.diff(record.adapters, axis=0) if inside else None
        if vantage is Vantage.V3 and aggregates is not None:
            aggregates = record.without(attacker, aggregates)
        return cls(
            vantage=vantage,
            schema=record.schema,
            initial=record.adapters[0],
            globals_=record.adapters[:-1] if inside else None,
            updates=record.updates if vantage is Vantage.V1 else None,
            aggregates=aggregates,
            attacker=attacker if vantage is Vantage.V3 else None,
            released=None if vantage is Vantage.V5 else record.adapters[-1],
            api=record.adapters[-1],
        )


@dataclass(frozen=True, eq=False)
class Record:
    """A transcript as it lies in a run's folder; never handed to an attack.

    Attributes:
        protection: How updates were summed.
        schema: Hash of the adapter's schema.
        adapters: Shape (T + 1, P): the adapter before each round, and the released one.
        updates: Shape (T, K, P), see `View`; None where the server saw none.
        weights: Shape (T, K): examples that clients told, 0 for those not heard.
        heard: Shape (T, K), bool: who answered.
    """

    protection: str
    schema: str
    adapters: Vector
    updates: Vector | None
    weights: NDArray[np.float64]
    heard: NDArray[np.bool_]

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Read the transcript of a run.

        Raises:
            ConfigError: The run kept none.
            IntegrityError: It is broken.
        """
        place = folder / "transcript"
        try:
            index = json.loads((place / "index.json").read_text(encoding="utf-8"))
            protection, schema = index["protection"], index["schema"]
            places = Partitions.of_index(index)
        except OSError as error:
            raise ConfigError(
                f"{folder} kept no transcript; run it with transcript = true"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"{place / 'index.json'} is not the index of a transcript"
            ) from error
        rounds = sorted(place.glob("round-*.npz"), key=lambda path: (len(path.name), path.name))
        if not rounds:
            raise ConfigError(f"{place} holds no round")
        adapters: list[Vector] = []
        single: dict[int, tuple[NDArray, ...]] = {}
        try:
            for path in rounds:
                with np.load(path, allow_pickle=False) as file:
                    adapters.append(file["global_adapter"])
                    # Behind a protection an "update" on record could only be the sum.
                    if protection == "plain" and "updates" in file.files:
                        columns = ("clients", "updates", "num_examples")
                        single[len(adapters) - 1] = tuple(file[name] for name in columns)
            with np.load(folder / CHECKPOINT, allow_pickle=False) as file:
                adapters.append(file["vector"])
            stacked = np.stack(adapters)
            updates, weights, heard = None, np.empty((0, 0)), np.empty((0, 0), dtype=bool)
            if single:
                updates, weights, heard = _by_client(single, stacked, places)
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise IntegrityError(
                f"the transcript in {place} is broken: {type(error).__name__}: {error}"
            ) from error
        if not np.isfinite(stacked).all():
            raise IntegrityError(f"the transcript in {place} holds values that are not finite")
        return cls(protection, schema, stacked, updates, weights, heard)

    def without(self, client: int, aggregates: Vector) -> Vector:
        """Take a client's own part out of weighted means; leave other sums as they are."""
        totals = self.weights.sum(axis=1, keepdims=True)
        if self.updates is None or not totals.all():
            return aggregates
        shares = self.weights / totals
        means = np.einsum("tk,tkp->tp", shares, self.updates)
        if np.abs(means - aggregates).max() > 1e-3 * np.abs(aggregates).max():
            return aggregates  # noised, or moved by a server optimiser
        own = shares[:, client, None] * self.updates[:, client]
        rest = 1 - shares[:, client, None]  # of a round that it had to itself nothing is left
        others = np.divide(aggregates - own, rest, out=np.zeros_like(own), where=rest > 0)
        return others.astype(np.float32)


def _by_client(
    rounds: dict[int, tuple[NDArray, ...]], adapters: Vector, places: Partitions
) -> tuple[Vector, NDArray[np.float64], NDArray[np.bool_]]:
    """Sort updates, weights and who was heard by partition.

    A client that was not drawn, or was not heard, has an update of zero and no weight; so has one
    whose update isn't finite, as it has for a mechanism that clips.
    """
    updates = np.zeros((len(adapters) - 1, places.count, adapters.shape[1]), dtype=np.float32)
    weights, heard = np.zeros(updates.shape[:2]), np.zeros(updates.shape[:2], dtype=bool)
    for number, (nodes, vectors, examples) in rounds.items():
        change = vectors - adapters[number]
        sound = np.isfinite(change).all(axis=1)
        at = places.of(nodes)
        heard[number, at] = True
        updates[number, at[sound]] = change[sound]
        weights[number, at[sound]] = examples[sound]
    return updates, weights, heard


def run_config(folder: Path) -> Config:
    """Return the configuration of a run from its result."""
    return config_from(Result.load(folder).config)
