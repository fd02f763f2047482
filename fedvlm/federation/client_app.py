"""The client: trains the adapter on its own pairs and returns it as one vector."""

import time

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fedvlm.canaries import HOST, canary_update, hidden_in
from fedvlm.errors import IntegrityError
from fedvlm.federation.protection import protect_client, settings_of
from fedvlm.federation.roll import own_number, tell_number
from fedvlm.federation.task import Task, load_task

VECTOR = "adapter"

app = ClientApp(mods=[protect_client])


def _canary(task: Task, before: NDArray[np.float32], client: int, server_round: int) -> NDArray:
    """Return what a client sends that is a canary and holds no pairs."""
    update = canary_update(task.config, task.view.size, client)
    if task.config.dp != "distributed":
        return before + update
    from fedvlm.federation.private_client import encode_update

    return encode_update(task, update, client, server_round)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Tell the node's number: all that the server needs to draw clients by the seed."""
    return tell_number(message, own_number(context))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round.

    The message carries the adapter as one float32 array, its schema hash and the round; so does
    the reply, with the number of examples and the mean loss beside it; under
    example-level DP it carries the noised adapter and nothing else, under distributed DP noised
    integers in place of the adapter. A client beyond the configured number is a canary.

    Raises:
        IntegrityError: The adapter is of another schema, or not finite; nothing is sent.
    """
    start = time.perf_counter()
    # One thread a client: a result must not depend on how many cores there are.
    torch.set_num_threads(1)
    task = load_task(settings_of(context))
    client = int(context.node_config["partition-id"])
    settings = message.content["config"]
    arrays = message.content["arrays"]
    if not isinstance(arrays, ArrayRecord) or not isinstance(settings, ConfigRecord):
        raise IntegrityError("the message to train has no arrays or no config")
    task.view.write(arrays[VECTOR].numpy(), str(settings["schema"]))
    number = int(settings["server-round"])  # pyright: ignore[reportArgumentType]
    vector: NDArray | None = None
    # Under DP a loss, a count or a time would be a release of its own: none is sent.
    metrics: dict[str, int | float] = {"num-examples": 1}
    config, before = task.config, task.view.read()
    if client >= config.clients:
        vector = _canary(task, before, client, number)
        if config.dp == "client":  # a canary is the worst that may come: it weighs its most
            metrics["num-examples"] = max(1, config.weight_cap)
    elif config.dp == "example":
        from fedvlm.federation.private_client import train_with_dp

        train_with_dp(task, client, number, context.state)
    elif config.dp == "distributed":
        from fedvlm.federation.private_client import encode_update

        task.train(client, number)
        vector = encode_update(task, task.view.read() - before, client, number)
    else:
        loss = task.train(client, number)
        if client == HOST and config.canaries and not config.canary_clients:
            vector = before + hidden_in(config, task.view.read() - before)
        metrics = {
            "num-examples": len(task.splits.clients[client]),
            "train-loss": loss,
            "client-seconds": time.perf_counter() - start,
        }
    content = RecordDict(
        {
            "arrays": ArrayRecord({VECTOR: Array(task.view.read() if vector is None else vector)}),
            "metrics": MetricRecord({**metrics}),
        }
    )
    return Message(content, reply_to=message)
