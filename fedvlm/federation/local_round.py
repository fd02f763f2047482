"""What a client does in a round: trains on its own pairs, and makes its reply.

Apart from `client_app`, so that messages that train nothing bring no torch.
"""

import logging
import time

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedvlm.canaries import HOST, canary_update, hidden_in
from fedvlm.config.whole import Config
from fedvlm.federation.exchange import SECOND, Exchange, read_round
from fedvlm.federation.mitigated import mitigated, weight_of
from fedvlm.federation.node import Node
from fedvlm.federation.node_ledger import NodeLedger
from fedvlm.federation.records import EXAMPLES, VECTOR
from fedvlm.federation.task import Task

log = logging.getLogger("fedvlm")


def answer(message: Message, context: Context, node: Node, config: Config) -> Message:
    """Train for one round and return the reply.

    Args:
        message: The adapter, its schema hash and the round.
        context: Flower's, for its state.
        node: Whose data it is; its floor has been met.
        config: The run's configuration.

    Raises:
        IntegrityError: The adapter is of another schema, or not finite; nothing is sent.
        BudgetExceeded: The node's budget doesn't hold the round; nothing is sent.
        RefusedError: The node has given all the answers that its owner allows.
    """
    start = time.perf_counter()
    # One thread a client: a result must not depend on how many cores there are.
    torch.set_num_threads(1)
    number, sent, settings = read_round(message, "train")
    task = node.task(config)
    if settings.get(SECOND) is not True:  # before what was sent is put into the model
        task = mitigated(task, node)
    exchange = Exchange(task, node, context, number)
    answered = exchange.receive(sent, settings)
    if answered is None:
        ledger = NodeLedger(node, context.state)
        session = f"{context.run_id}/{message.metadata.message_id}"
        with exchange.training():
            vector, metrics = _trained(task, max(node.number, 0), number, ledger, session)
        vector = exchange.send(vector, metrics)
    else:
        vector, metrics = answered
    if "client-seconds" in metrics:
        metrics["client-seconds"] = time.perf_counter() - start
    content = RecordDict(
        {"arrays": ArrayRecord({VECTOR: Array(vector)}), "metrics": MetricRecord({**metrics})}
    )
    return Message(content, reply_to=message)


def _trained(
    task: Task, client: int, number: int, ledger: NodeLedger, session: str
) -> tuple[NDArray, dict[str, int | float]]:
    """Pay, train, and return what is sent: the vector and its metrics."""
    config, before = task.config, task.view.read()
    # Under DP a loss, a count or a time would be a release of its own: none is sent.
    alone: dict[str, int | float] = {EXAMPLES: 1}
    if config.canary_clients and client >= config.data.clients:
        if config.privacy.dp == "client":  # a canary is the worst that may come: it weighs its most
            alone = {EXAMPLES: max(1, config.privacy.weight_cap)}
        return _canary(task, before, client, number), alone
    if config.has_head:
        from fedvlm.federation.head_round import head_round

        return head_round(task, client, number, ledger, session)
    if config.privacy.dp == "example":
        from fedvlm.federation.private_client import train_with_dp

        train_with_dp(task, client, number, ledger, session)
        return task.view.read(), alone
    if config.privacy.dp == "distributed":
        from fedvlm.federation.private_client import distributed_mechanism, encode_update

        mechanism = distributed_mechanism(config, task.view.size)
        try:
            ledger.answer(config, number, session, "client", mechanism)
            task.train(client, number)
            update = task.view.read() - before
        except Exception as error:
            # It has agreed to the sum, and the others count on its share of the noise: bare zeros
            # in its place would leave them less than they paid for.
            log.error("this node adds noise and no update: %s", error, exc_info=True)
            update = np.zeros_like(before)
        return encode_update(task, update, client, number), alone
    ledger.answer(config, number, session)
    # Before training: afterwards it would say how well a client learns what it has.
    weight = weight_of(task, client, number) if config.mitigation.loss_power else None
    loss = task.train(client, number)
    vector = task.view.read()
    if client == HOST and config.audit.canaries and not config.canary_clients:
        vector = before + hidden_in(config, vector - before)
    pairs = len(task.rows(client))
    told = {
        EXAMPLES: pairs if weight is None else weight,
        "train-loss": loss,
        "client-seconds": 0.0,
    }
    return vector, told


def _canary(task: Task, before: NDArray[np.float32], client: int, server_round: int) -> NDArray:
    """Return what a client sends that is a canary and holds no pairs."""
    update = canary_update(task.config, task.view.size, client)
    if task.config.privacy.dp != "distributed":
        return before + update
    from fedvlm.federation.private_client import encode_update

    return encode_update(task, update, client, server_round)
