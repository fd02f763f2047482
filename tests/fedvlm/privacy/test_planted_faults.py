"""T1: faults that were put in on purpose and that no test noticed; each has one here.

The steps of DP-SGD (a last one without noise, the batch's own size, a step too many) are held by
`test_dpsgd.py::test_t1_…`.
"""

import dataclasses

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedvlm.config import config_from, to_run_config
from fedvlm.errors import BudgetExceeded
from fedvlm.federation import InProcessGrid, private_client
from fedvlm.federation.client_app import VECTOR, app
from fedvlm.federation.distributed import DistributedStrategy, distributed_policy
from fedvlm.federation.floor import Floor
from fedvlm.federation.node import Node
from fedvlm.federation.node_ledger import NodeLedger
from fedvlm.federation.private import ClientLevelStrategy, ExampleLevelStrategy
from fedvlm.federation.private_client import distributed_mechanism
from fedvlm.federation.task import load_task
from fedvlm.privacy import losses

NODES = 40


def _inner():
    return FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1)


def _strategy(kind, **settings):
    config = config_from({"clients": NODES, "rounds": 2, "epsilon": 4.0, **settings})
    if kind == "distributed":
        object.__setattr__(config.privacy, "dp", "distributed")
        return DistributedStrategy(_inner(), config, 64)
    if kind == "example":
        return ExampleLevelStrategy(_inner(), config, 64 * NODES)
    return ClientLevelStrategy(_inner(), config)


def _ask(strategy, server_round):
    grid = InProcessGrid(lambda m, c: Message(RecordDict(), reply_to=m), NODES)
    arrays = ArrayRecord({VECTOR: Array(np.zeros(64, dtype=np.float32))})
    sent = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
    return sorted(message.metadata.dst_node_id for message in sent)


@pytest.mark.parametrize("kind", ["example", "client", "distributed"])
def test_t1_a_ledger_is_kept_across_a_resume(kind):
    strategy = _strategy(kind, fraction=1.0)
    _ask(strategy, 1)
    _ask(strategy, 2)
    again = _strategy(kind, fraction=1.0)
    assert again.spent() == 0
    again.restore(strategy.state())
    assert again.spent() == strategy.spent() > 3.9
    with pytest.raises(BudgetExceeded):
        _ask(again, 3)
    with pytest.raises(BudgetExceeded):
        _ask(again, 1)


def test_t1_who_is_drawn_does_not_follow_from_the_experiments_seed():
    """Amplification counts on secret coins; 40 fall alike with a chance of 2^-40."""
    settings = {"dp": "client", "fraction": 0.5, "seed": 7}
    drawn = [_ask(_strategy("client", **settings), 1) for _ in range(2)]
    assert drawn[0] != drawn[1]
    settings["simulated_noise"] = True
    drawn = [_ask(_strategy("client", **settings), 1) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_t1_noise_is_planned_without_the_colluders():
    config = config_from({"clients": NODES, "rounds": 2, "epsilon": 4.0, "clip_norm": 0.5})
    object.__setattr__(config.privacy, "dp", "distributed")
    mechanism, policy = distributed_mechanism(config, 64), distributed_policy(config, 64)
    colluders = policy.corrupt_members(NODES)
    assert colluders >= 4
    assert mechanism.least_noised <= policy.sharing(NODES).quorum - colluders
    # The noise of those alone is what the plan says.
    total = mechanism.least_noised * mechanism.local_variance
    assert total >= (mechanism.noise_multiplier * 0.5 * mechanism.scale) ** 2 * (1 - 1e-9)


EXAMPLE = {"dp": "example", "epsilon": 5.0, "delta": 1e-4, "rounds": 1}


def test_t1_a_client_keeps_its_ledger(small_run):
    """One round was planned: asked again for it, a client with a ledger refuses."""
    config = config_from({**small_run, **EXAMPLE})
    task = load_task(config)
    grid = InProcessGrid(app, config.data.clients, to_run_config(config))
    node = sorted(grid.get_node_ids())[0]

    def ask():
        content = RecordDict(
            {
                "arrays": ArrayRecord({VECTOR: Array(task.initial)}),
                "config": ConfigRecord({"schema": task.view.schema, "server-round": 1}),
            }
        )
        message = Message(content, dst_node_id=node, message_type="train")
        (reply,) = grid.send_and_receive([message])
        return reply

    assert not ask().has_error()
    assert ask().has_error()


def test_t1_the_bank_is_public(small_run, monkeypatch):
    """A bank of a client's own pairs would release them with every step."""
    config = config_from({**small_run, **EXAMPLE})
    task = load_task(config)
    first, *others = task.splits.clients
    splits = dataclasses.replace(task.splits, public=first[:4], clients=[first[4:], *others])
    task = dataclasses.replace(task, splits=splits)
    banks = []
    real = losses.bank
    monkeypatch.setattr(
        losses,
        "bank",
        lambda vlm, pairs, rows: banks.append(rows) or real(vlm, pairs, rows),
    )
    for client in range(config.data.clients):
        ledger = NodeLedger(Node(client, Floor(), simulated=True), RecordDict())
        private_client.train_with_dp(task, client, 1, ledger, "run 1")
    assert len(banks) == config.data.clients
    private = set(np.concatenate(task.splits.clients).tolist())
    for rows in banks:
        assert set(rows.tolist()) <= set(task.splits.public.tolist())
        assert not set(rows.tolist()) & private
        assert len(rows)
