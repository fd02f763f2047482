"""A node: what its owner put into it, and what it does for a run.

In a deployment its owner writes `node.toml` and names it when the SuperNode is started:

    flower-supernode … --node-config "node='/etc/fedvlm/node.toml'"

In a simulation the partition makes a node of the same kind. A SuperNode that was given no file
holds no data of anybody: it takes part with the embedded public data only.
"""

import difflib
import os
import stat
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context

from fedvlm.config.mitigation import NEED_PUBLIC
from fedvlm.config.reading import read_toml
from fedvlm.config.training import DTYPES, check_device
from fedvlm.config.whole import Config
from fedvlm.errors import ConfigError
from fedvlm.federation.floor import PROTECTIONS, Floor, RefusedError, Terms, floor_from
from fedvlm.federation.roll import own_number

if TYPE_CHECKING:
    from fedvlm.federation.task import Task
    from fedvlm.models import LoadedModel
    from fedvlm.models.generative import LoadedGenerative

PUBLIC_DATA, PUBLIC_MODEL = "emoji", "embedded"
_SHIPPED = (PUBLIC_MODEL, "embedded-vqa")  # models that come with the library
_PATHS = ("data", "state", "identity", "roster", "he_key", "listed")
_SECRETS = ("identity", "he_key")
_KEYS = (
    "number",
    "data",
    "model",
    "device",
    "dtype",
    "micro_batch",
    "state",
    "identity",
    "roster",
    "he_key",
    "listed",
    "public",
    "floor",
)


@dataclass(frozen=True)
class Node:
    """One party that holds data, and the terms on which it lets a run use them.

    Attributes:
        number: Its number in the federation, from 0; -1 where it has none.
        floor: The least that its owner asks for.
        data: Folder of its own pairs; None where the partition deals them out.
        model: Folder of its base model, or one that is shipped; None where the run may name it.
        device: Where it trains: auto, cpu, cuda, cuda:N or mps.
        dtype: Precision of its base weights: float32 or bfloat16.
        micro_batch: Pairs whose activations it holds at a time, 0 for a whole step's.
        state: Folder of its ledger and counts; None where only Flower's own state is there.
        identity: File of its private key for secure aggregation.
        roster: File of the clients' public keys.
        he_key: File of the clients' common key for sums under encryption.
        listed: File of captions that mitigations lead away from; None for the embedded list.
        public: "emoji" or a folder: pairs beside its own that anybody may see, for mitigations.
        simulated: Whether everybody's data are on this machine anyway.
    """

    number: int
    floor: Floor
    data: Path | None = None
    model: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    micro_batch: int = 0
    state: Path | None = None
    identity: Path | None = None
    roster: Path | None = None
    he_key: Path | None = None
    listed: Path | None = None
    public: str | None = None
    simulated: bool = False

    def agree(self, config: Config) -> None:
        """Compare what a run asks for with the floor; nothing of the data is touched.

        Args:
            config: The run's configuration, as the server sent it.

        Raises:
            RefusedError: The run asks for less, or for what isn't the node's to open.
        """
        terms = Terms.of(config)
        if self.data is None:  # nobody's: what is dealt out has no column that is its owner's
            terms = replace(terms, attribute="")
        self.floor.check(terms)
        if self.simulated:
            return
        if self.data is not None and terms.simulated_noise:
            raise RefusedError(
                "noise", "the run wants noise that follows from its seed, which protects nobody"
            )
        if self.data is None and config.data.source != PUBLIC_DATA:
            raise RefusedError(
                "data",
                f"the run names the data {config.data.source!r}, and a node opens no folder that "
                "the server chooses; name your own in node.toml",
            )
        if self.model is None and config.model.name not in _SHIPPED:
            raise RefusedError(
                "data",
                f"the run names the model {config.model.name!r}, and a node loads none that the "
                "server chooses; name your own in node.toml",
            )
        self._agree_on_mitigation(config)

    def _agree_on_mitigation(self, config: Config) -> None:
        """Refuse a mitigation that this node can't train with, or one with a file of the server's.

        Raises:
            RefusedError: Saying what is missing.
        """
        asked = config.mitigation
        if asked.listed:
            raise RefusedError(
                "data",
                "the run names a list of captions, and a node opens no file that the server "
                "chooses; name your own as listed in node.toml",
            )
        if not asked.trains:
            return
        if self.device not in ("cpu", "auto") or self.dtype != "float32":
            raise RefusedError(
                "mitigation",
                f"{asked.kind} is trained on the CPU in float32, and node.toml says {self.device}, "
                f"{self.dtype}",
            )
        if self.data is None:
            return  # the embedded data have public pairs
        if config.privacy.dp == "example":
            raise RefusedError(
                "mitigation",
                f"{asked.kind} under example-level DP contrasts with public pairs of the data, and "
                "a folder of one's own has none",
            )
        if asked.kind in NEED_PUBLIC and self.public is None:
            raise RefusedError(
                "mitigation",
                f"{asked.kind} needs public pairs, and this node names none; add public = "
                '"FOLDER", or "emoji", to node.toml',
            )

    def task(self, config: Config) -> "Task":
        """Return model, adapter and the node's own pairs; its rows are `Task.own`.

        Raises:
            RefusedError: The base model isn't the floor's.
        """
        from fedvlm.federation.task import load_own_task, load_task

        if self.data is None:
            return load_task(config, client=self.number)

        def check(model: "LoadedModel | LoadedGenerative") -> None:
            if self.floor.model:
                self.floor.check_model(model.hashes.weights)

        # Where and in which pieces it computes is its owner's choice, not the server's.
        own = replace(
            config.training, device=self.device, dtype=self.dtype, micro_batch=self.micro_batch
        )
        task = load_own_task(
            replace(config, training=own), self.data, self.model or PUBLIC_MODEL, check
        )
        check(task.model)  # a task that was loaded before may be another run's
        return task


def node_of(context: Context) -> Node:
    """Return the node that a message came to.

    Args:
        context: Flower's; only `node_config`, which the node's owner writes, is read.

    Raises:
        ConfigError: The node's file is missing or wrong.
    """
    config, number = context.node_config, own_number(context)
    named = config.get("node")
    if named is not None:
        if not isinstance(named, str) or not named:
            raise ConfigError(f"--node-config node names a file; got {named!r}")
        return read_node(Path(named), number)
    state = config.get("state")
    folder = Path(state) if isinstance(state, str) and state else None
    places = [config.get(key) for key in ("secagg-identity", "secagg-roster", "he-key")]
    identity, roster, he_key = (Path(p) if isinstance(p, str) and p else None for p in places)
    if simulated(context):
        return Node(
            number,
            Floor(),
            state=folder,
            identity=identity,
            roster=roster,
            he_key=he_key,
            simulated=True,
        )
    # Without a file: no data of its own. Whoever gave it keys meant them to be used.
    least = "secagg" if identity is not None else "he" if he_key is not None else "plain"
    floor = Floor(protect=least)
    return Node(number, floor, state=folder, identity=identity, roster=roster, he_key=he_key)


def simulated(context: Context) -> bool:
    """Return whether a node is simulated: by the grid in this process, or by Flower on Ray.

    The mark is in the node's own configuration, or in the process that it runs in: no server of a
    deployment can set either.
    """
    if "node" in context.node_config:
        return False
    return context.node_config.get("simulated") is True or _on_ray()


def _on_ray() -> bool:
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return ray.get_runtime_context().get_actor_id() is not None


def read_node(path: Path, number: int = -1) -> Node:
    """Read a node's file. Paths in it are relative to its folder.

    Args:
        path: `node.toml`.
        number: The number that SuperNode's configuration gives, where the file gives none.

    Raises:
        ConfigError: The file is missing, isn't TOML, has an unknown key or a wrong value, names
            what isn't there, or it or a key may be read or written by others.
    """
    settings = read_toml(path, "the node's file ")
    mode = path.stat().st_mode
    if os.name != "nt" and mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path} can be written by others; chmod go-w {path}")
    try:
        return _node(settings, path.parent, number)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _node(settings: dict[str, Any], folder: Path, number: int) -> Node:
    _known(settings, _KEYS, "")
    floor = settings.pop("floor", {})
    if not isinstance(floor, dict):
        raise ConfigError(f"floor is a table, [floor]; got {floor!r}")
    _known(floor, tuple(field.name for field in fields(Floor)), "floor.")
    number = settings.pop("number", number)
    micro_batch = settings.pop("micro_batch", 0)
    if type(micro_batch) is not int or not 0 <= micro_batch <= 1_000_000:
        raise ConfigError(f"micro_batch must be a whole number from 0; got {micro_batch!r}")
    if type(number) is not int or number < -1:
        raise ConfigError(f"number must be a whole number from 0; got {number!r}")
    for key, value in settings.items():
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{key} must be a text; got {value!r}")
    device, dtype = settings.pop("device", "cpu"), settings.pop("dtype", "float32")
    check_device(device)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    model = settings.pop("model", PUBLIC_MODEL)
    if model not in _SHIPPED:
        model = str(_there(folder / Path(model).expanduser(), "model"))
    public = settings.pop("public", None)
    if public is not None and public != PUBLIC_DATA:
        public = str(_there(folder / Path(public).expanduser(), "public"))
    paths = {key: folder / Path(settings[key]).expanduser() for key in _PATHS if key in settings}
    if "data" not in paths:
        raise ConfigError('names no data; add data = "FOLDER", your images and captions')
    for key, path in paths.items():
        if key != "state":
            _there(path, key)
        if key in _SECRETS:
            _private(path, key)
    if ("identity" in paths) != ("roster" in paths):
        raise ConfigError("identity and roster come together; add the one that is missing")
    read = floor_from(floor)
    least = "secagg" if "identity" in paths else "he" if "he_key" in paths else "plain"
    if "protect" not in floor:
        read = replace(read, protect=least)  # keys are there to be used
    if PROTECTIONS.index(read.protect) < PROTECTIONS.index(least):
        raise ConfigError(
            f"floor.protect is {read.protect!r}, and the node has keys for {least}: raise it to "
            f"{least}, or take the keys out"
        )
    return Node(
        number=number,
        floor=read,
        data=paths["data"],
        model=model,
        device=device,
        dtype=dtype,
        micro_batch=micro_batch,
        state=paths.get("state", folder / "state"),
        identity=paths.get("identity"),
        roster=paths.get("roster"),
        he_key=paths.get("he_key"),
        listed=paths.get("listed"),
        public=public,
    )


def _known(settings: dict[str, Any], known: tuple[str, ...], before: str) -> None:
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {before}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown key {before}{key}; {hint}")


def _there(path: Path, key: str) -> Path:
    if not path.exists():
        raise ConfigError(f"{key}: {path} isn't there")
    return path


def _private(path: Path, key: str) -> None:
    """Refuse a secret that others on the machine can read or replace."""
    if os.name != "nt" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{key}: {path} can be read by others; chmod 600 {path}")
