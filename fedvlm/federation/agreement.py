"""Agreement before training: a node compares what decides a result with the server's facts.

The server sends hashes and versions, and the node says which of them differs first, by a fixed
code. What it has itself stays with it: no server learns the hash of a model by asking for it.
"""

from importlib import metadata
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Message, RecordDict

from fedvlm.config import Config
from fedvlm.federation.floor import DIFFERENCES, RefusedError
from fedvlm.federation.node import PUBLIC_MODEL, Node
from fedvlm.federation.roll import FACTS

if TYPE_CHECKING:
    from fedvlm.federation.task import Task
    from fedvlm.models import LoadedModel
    from fedvlm.models.generative import LoadedGenerative

# How much of a version decides a result. Flower only carries messages, and isn't among them.
_PARTS = {"fedvlm": 0, "torch": 2, "transformers": 2, "peft": 2, "numpy": 1, "pillow": 1}
_MODEL = ("model", "tokenizer", "schema")
_MOST = 200


def version_facts() -> dict[str, str]:
    """Return of each library that decides a result as much of its version as does.

    All of fedvlm's; major and minor of torch (kernels), transformers (preprocessing) and peft
    (initial factors); the major of NumPy (random streams) and Pillow (how images are resized).
    """
    found = {}
    for name, parts in _PARTS.items():
        pieces = metadata.version(name).split("+")[0].split(".")
        found[name] = ".".join(pieces[:parts] if parts else pieces)
    return found


def facts_of(task: "Task") -> dict[str, str]:
    """Return what the server expects of every node.

    Args:
        task: The server's.

    Returns:
        Versions, hashes of base model and tokenizer, and of the adapter's schema where it follows
        from the model alone.
    """
    hashes = task.model.hashes
    facts = version_facts() | {"model": hashes.weights, "tokenizer": hashes.tokenizer}
    # A head is as large as the captions ask: its schema is compared with each message.
    return facts if task.config.has_head else facts | {"schema": task.view.schema}


def compare(message: Message, node: Node, config: Config) -> Message:
    """Answer whether this node would train on the same terms; its data are not touched.

    Args:
        message: With the server's facts.
        node: The node; its floor has been met.
        config: The run's configuration.

    Raises:
        RefusedError: Naming the first fact that differs; versions are compared before the model
            is loaded.
    """
    facts = _read(message)
    _same(facts, version_facts())
    model = bare_model_of(node)
    node.floor.check_model(model.hashes.weights)
    _same(facts, {"model": model.hashes.weights, "tokenizer": model.hashes.tokenizer})
    if "schema" in facts:
        from fedvlm.federation.task import bare_schema

        _same(facts, {"schema": bare_schema(config, model)})
    return Message(RecordDict({FACTS: ConfigRecord({"same": True})}), reply_to=message)


def bare_model_of(node: Node) -> "LoadedModel | LoadedGenerative":
    """Load a node's base model, and nothing else of it."""
    from fedvlm.federation.task import bare_model

    return bare_model(node.model or PUBLIC_MODEL)


def _same(facts: dict[str, str], own: dict[str, str]) -> None:
    for name, value in own.items():
        if facts[name] != value:
            raise RefusedError(
                name,
                f"{DIFFERENCES[name]}: the server has {facts[name][:20]}, this node "
                f"{value[:20]}; both sides need the same",
            )


def _read(message: Message) -> dict[str, str]:
    """Read the server's facts, strictly: it may send whatever it likes."""
    record = message.content.get(FACTS)
    if not isinstance(record, ConfigRecord):
        raise RefusedError("terms", "the server asks for agreement, and names no facts")
    known = {*_PARTS, *_MODEL}
    facts = {
        name: value
        for name, value in record.items()
        if name in known and isinstance(value, str) and len(value) <= _MOST
    }
    wrong = [name for name in record if name not in facts]
    missing = [name for name in known - {"schema"} if name not in facts]
    if wrong or missing:
        raise RefusedError(
            "terms", f"the server's facts are none: {len(wrong)} unknown, {len(missing)} missing"
        )
    return facts
