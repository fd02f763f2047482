"""A run that was interrupted goes on: the global adapter, the strategy's state, the history."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedvlm.config import Config, config_from
from fedvlm.config.whole import UNDECIDED
from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.federation.records import VECTOR
from fedvlm.federation.result import Result
from fedvlm.files import whole_file

if TYPE_CHECKING:
    from fedvlm.federation.task import Task

FILE = "checkpoint.npz"
# What Flower's strategies keep between rounds, by attribute.
_MOMENTS = ("m_t", "v_t")
_INPUTS = {
    "data": "the data (captions, images or labels)",
    "weights": "the model's weights",
    "tokenizer": "the model's tokenizer",
}


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a round.

    Attributes:
        vector: Shape (P,), float32: the global adapter.
        schema: Hash of the adapter's schema.
        rounds: The history so far, one entry a round; entry 0 is before training.
        config: The configuration that the run was started with.
        state: The server optimiser's moments, by name.
        inputs: Hashes of what the run was made from, by name: `data` (every image, caption and
            label), `weights` of the base model, `tokenizer`.
    """

    vector: NDArray[np.float32]
    schema: str
    rounds: list[dict[str, Any]]
    config: dict[str, Any]
    state: dict[str, NDArray]
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def rounds_done(self) -> int:
        """Number of rounds behind this checkpoint."""
        return len(self.rounds) - 1

    def save(self, folder: Path) -> None:
        """Write the checkpoint into a folder, whole or not at all."""
        text = json.dumps(
            {
                "schema": self.schema,
                "rounds": self.rounds,
                "config": self.config,
                "inputs": self.inputs,
            }
        )
        state = {f"state_{name}": value for name, value in self.state.items()}
        with whole_file(folder / FILE) as temporary, temporary.open("wb") as file:
            np.savez(file, vector=self.vector, text=np.array(text), **state)  # pyright: ignore

    @classmethod
    def load(
        cls,
        folder: Path,
        config: Config,
        schema: str,
        inputs: dict[str, str] | None = None,
    ) -> "Checkpoint":
        """Read the checkpoint of a folder for a run of the same configuration on the same inputs.

        Args:
            folder: Folder of the run.
            config: The configuration of the run that goes on.
            schema: Hash of its adapter's schema.
            inputs: Hashes of its inputs; not compared where None.

        Raises:
            ConfigError: There is none, it belongs to another configuration, or data, weights or
                tokenizer have changed since; the message names which.
            IntegrityError: It is broken, or holds an adapter of another schema.
        """
        path = folder / FILE
        if not path.exists():
            raise ConfigError(f"nothing to resume in {folder}: it has no {FILE}")
        try:
            with np.load(path, allow_pickle=False) as archive:
                text = json.loads(str(archive["text"]))
                state = {k[6:]: archive[k] for k in archive.files if k.startswith("state_")}
                found = cls(
                    archive["vector"],
                    text["schema"],
                    text["rounds"],
                    text["config"],
                    state,
                    text.get("inputs", {}),
                )
        except Exception as error:  # zipfile, NumPy and json each raise their own
            raise IntegrityError(f"{path} is broken: {type(error).__name__}") from error
        # The settings first: they name what differs, of which another schema may be the effect.
        require_same(found.config, config, folder)
        if found.schema != schema:
            raise IntegrityError(
                f"{path} holds an adapter of another schema: {found.schema[:12]}…, "
                f"expected {schema[:12]}…"
            )
        other = [name for name, value in (inputs or {}).items() if found.inputs.get(name) != value]
        if other:
            told = " and ".join(_INPUTS.get(name, name) for name in other)
            raise ConfigError(
                f"{folder} was started on other inputs: {told} changed since; bring them back, or "
                "start in another folder"
            )
        return found


def input_hashes(task: "Task") -> dict[str, str]:
    """Return the hashes of what a run is made from, for `Checkpoint.inputs`."""
    return {"data": task.data.fingerprint, **asdict(task.model.hashes)}


def _saved(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    if not path.exists():
        raise ConfigError(f"nothing to resume in {folder}: it has no {FILE}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return json.loads(str(archive["text"]))
    except Exception as error:  # zipfile, NumPy and json each raise their own
        raise IntegrityError(f"{path} is broken: {type(error).__name__}") from error


def saved_config(folder: Path) -> Config:
    """Return the configuration that the run in a folder was started with.

    Raises:
        ConfigError: There is no run to go on with.
        IntegrityError: Its checkpoint is broken.
    """
    text = _saved(folder)
    try:
        return config_from(text["config"])
    except Exception as error:  # of any kind: nobody checked what stands in the file
        raise IntegrityError(f"{folder / FILE} is broken: {type(error).__name__}") from error


def nothing_left(folder: Path, config: Config) -> str:
    """Return what to tell who resumes a run that is finished; empty if something is left to do.

    Args:
        folder: Folder of the run, of which `saved_config` could be read.
        config: The configuration of the run that goes on.
    """
    if saved_result(folder, config, _saved(folder)["rounds"]) is None:
        return ""
    rounds = config.training.rounds
    more = "" if config.privacy.dp != "none" else f"; --set rounds={rounds + 1} adds one"
    return f"nothing was left to do: all {rounds} rounds are done{more}"


def saved_result(folder: Path, config: Config, rounds: list[dict[str, Any]]) -> Result | None:
    """Return the result of a run in a folder that has nothing left to do; None if it has.

    Args:
        folder: Folder of the run.
        config: The configuration of the run that goes on.
        rounds: Its history, from the checkpoint.
    """
    try:
        found = Result.load(folder)
    except ConfigError:
        return None

    # As text: a NaN in a round is no other round.
    def text(value: Any) -> str:
        return json.dumps(value, sort_keys=True)

    same = text([found.config, found.rounds]) == text([config.to_dict(), rounds])
    return found if same and len(rounds) > config.training.rounds else None


def require_same(saved: dict[str, Any], config: Config, folder: Path) -> None:
    """Refuse to go on with other settings; rounds may be added where no noise was planned for them.

    Raises:
        ConfigError: Naming each setting that differs, with both values.
    """
    now, before = config.by_name(), config_from(saved).by_name()
    changed = [name for name in now if name not in UNDECIDED and before[name] != now[name]]
    rounds = "training.rounds"
    if rounds in changed and config.privacy.dp == "none" and now[rounds] > before[rounds]:
        changed.remove(rounds)
    if not changed:
        return
    told = ", ".join(f"{name} was {before[name]!r}, is {now[name]!r}" for name in changed)
    why = ""
    if rounds in changed:
        why = "; rounds can be added only, and under DP not: the noise was planned for them"
    raise ConfigError(
        f"{folder} was started with another configuration: {told}{why}; resume without it, or "
        "start in another folder"
    )


def optimizer_state(strategy: Strategy) -> dict[str, NDArray]:
    """Return what a Flower strategy keeps between rounds."""
    state = {}
    for name in _MOMENTS:
        moments = getattr(strategy, name, None)
        if moments:
            state[name] = moments[VECTOR]
    momentum = getattr(strategy, "momentum_vector", None)
    if momentum is not None:
        state["momentum_vector"] = momentum[0]
    return state


def restore_optimizer(
    strategy: Strategy, state: dict[str, NDArray], vector: NDArray[np.float32]
) -> None:
    """Give a Flower strategy back what it kept between rounds."""
    for name in _MOMENTS:
        if name in state:
            setattr(strategy, name, {VECTOR: state[name]})
    if "momentum_vector" in state:
        strategy.momentum_vector = [state["momentum_vector"]]  # pyright: ignore
        strategy.current_arrays = ArrayRecord({VECTOR: Array(vector)})  # pyright: ignore
