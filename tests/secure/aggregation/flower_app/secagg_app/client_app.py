"""The client: its own training, and one line for secure aggregation."""

import os
import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from secagg_app.task import POLICY, step
from secure.aggregation.flower import secagg_mod


def stall(message, context, call_next):
    """Let a node that is to die say that it has reached the fatal trip, and wait for its end."""
    fatal = context.node_config.get("dies-at")
    record = message.content.config_records["secagg"]
    if fatal is not None and record.get("trip") == fatal:
        Path(str(context.node_config["marker"])).touch()
        time.sleep(300)
    return call_next(message, context)


app = ClientApp(mods=[stall, secagg_mod(POLICY, os.environ.get("SECAGG_IDENTITIES"))])


@app.train()
def train(message, context):
    partition = int(context.node_config["partition-id"])
    server_round = int(message.content["config"]["server-round"])
    model = message.content["arrays"]["w"].numpy() + step(partition, server_round)
    metrics = MetricRecord({"num-examples": 10 + partition, "loss": 1.0 + partition})
    content = RecordDict({"arrays": ArrayRecord({"w": Array(model)}), "metrics": metrics})
    return Message(content, reply_to=message)
