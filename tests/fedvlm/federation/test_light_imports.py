"""What trains nothing brings no torch: over SuperLink each message is a process (E3)."""

import subprocess
import sys

from flwr.app import Context, RecordDict

from fedvlm.config import config_from, to_run_config
from fedvlm.federation.answering import client_policy
from fedvlm.federation.terms import secure_policy

HEAVY = ("torch", "transformers", "peft", "scipy", "dp_accounting", "PIL", "sklearn", "tenseal")

QUERY = """
import sys
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
from fedvlm.federation.client_app import app
message = Message(RecordDict(), dst_node_id=7, message_type="query")
reply = app(message, Context(1, 7, {"partition-id": 4}, RecordDict(), {}))
assert reply.content["config"]["number"] == 4
"""

# The training itself is put in place of by a function: all that is left is the protocol.
SECAGG = """
import sys, tempfile, types
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

def answer(message, context, node, config):
    sent = message.content["arrays"]["adapter"].numpy()
    arrays = ArrayRecord({"adapter": Array(sent + np.float32(0.25))})
    metrics = MetricRecord({"num-examples": 3, "train-loss": 1.0, "client-seconds": 0.0})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

sys.modules["fedvlm.federation.local_round"] = types.SimpleNamespace(answer=answer)
from flwr.serverapp.strategy import FedAvg
from fedvlm.config import config_from, to_run_config
from fedvlm.federation.client_app import app
from fedvlm.federation.grid import InProcessGrid
from fedvlm.federation.protection import protected
from secure.aggregation import provision

config = config_from({"clients": 3, "protect": "secagg-active", "rounds": 1})
grid = InProcessGrid(app, 3, to_run_config(config))
inner = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_evaluate_nodes=0, min_train_nodes=3,
               min_available_nodes=3)
strategy = protected(inner, config).strategy
with tempfile.TemporaryDirectory() as folder:
    provision(folder + "/keys", 3)
    for number, context in enumerate(grid.contexts.values()):
        context.node_config["secagg-identity"] = f"{folder}/keys/{number}.key"
        context.node_config["secagg-roster"] = f"{folder}/keys/roster.json"
    start = ArrayRecord({"adapter": Array(np.zeros(64, dtype=np.float32))})
    found = strategy.start(grid, start, num_rounds=1).arrays["adapter"].numpy()
assert not grid.errors, grid.errors
assert np.abs(found - 0.25).max() < 1e-3, found
assert len(strategy.history[-1].trips) == 5
"""


def _imported(code):
    told = f"\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code + told], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_query_brings_no_model():
    assert _imported(QUERY) == "[]"


def test_the_trips_of_secure_aggregation_bring_no_model():
    assert _imported(SECAGG) == "[]"


def test_under_distributed_dp_the_terms_are_made_once(monkeypatch, small_run):
    """They depend on the adapter's size, for which the model would be loaded at each trip."""
    from fedvlm.federation.node import Node

    settings = {"dp": "distributed", "protect": "secagg", "clients": 4, "epsilon": 6.0}
    config = config_from(small_run | settings)
    node_config = {"partition-id": 0, "simulated": True}
    context = Context(1, 7, node_config, RecordDict(), to_run_config(config))
    first = client_policy(config, context)
    assert first == secure_policy(config)
    monkeypatch.setattr(Node, "task", None)
    assert client_policy(config, context) == first
    other = config_from(small_run | settings | {"epsilon": 7.0})
    try:
        client_policy(other, context)
    except TypeError:  # it would load the model: terms of another run are not taken for its own
        return
    raise AssertionError
