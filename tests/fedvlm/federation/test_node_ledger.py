"""What a node has told is counted on its own disk: asking again tells nothing more (S4, N2)."""

import json

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedvlm.config import config_from, to_run_config
from fedvlm.errors import BudgetExceeded, IntegrityError
from fedvlm.federation import InProcessGrid, load_task, node_ledger
from fedvlm.federation.client_app import VECTOR, app
from fedvlm.federation.floor import Floor, RefusedError
from fedvlm.federation.node import Node
from fedvlm.federation.node_ledger import NodeLedger
from fedvlm.privacy import GaussianMechanism

EXAMPLE = {"dp": "example", "epsilon": 5.0, "delta": 1e-2, "rounds": 2, "learning_rate": 1e-3}
DISTRIBUTED = {"dp": "distributed", "protect": "secagg", "epsilon": 6.0, "delta": 1e-2, "rounds": 2}


def _message(start, number):
    content = RecordDict(
        {
            "arrays": ArrayRecord({VECTOR: Array(start[0])}),
            "config": ConfigRecord({"schema": start[1], "server-round": number}),
        }
    )
    message = Message(content, dst_node_id=7, message_type="train")
    message.metadata.__dict__["_message_id"] = "m"
    return message


def _answers(config, tmp_path, ways):
    """Ask one node in many ways, each with a Context of its own; returns how many it answered."""
    InProcessGrid(app, 1)
    task = load_task(config)
    start = (task.initial, task.view.schema)
    node_config = {"partition-id": 0, "simulated": True, "state": str(tmp_path / "state")}
    got = 0
    for run_id, number in ways:
        context = Context(run_id, 7, node_config, RecordDict(), to_run_config(config))
        try:
            reply = app(_message(start, number), context)
        except BudgetExceeded:
            continue
        got += not reply.has_error()
    return got


def test_five_fresh_contexts_get_no_more_than_one(small_run, tmp_path):
    """N2: example level, asked again under new runs, new Contexts, the same and later rounds."""
    ways = [(run, number) for run in (1, 2, 3, 2**63 + 4, 5) for number in (1, 2)]
    assert _answers(config_from(small_run | EXAMPLE), tmp_path, ways) == 2


def test_the_same_round_asked_again_is_paid_again(small_run, tmp_path):
    """N2: a cut round that is run again counts."""
    assert _answers(config_from(small_run | EXAMPLE), tmp_path, [(1, 1)] * 5) == 2


def test_another_seed_opens_no_new_budget(small_run, tmp_path):
    """The seed is the server's; so are the run and every other setting."""
    first = config_from(small_run | EXAMPLE)
    assert _answers(first, tmp_path, [(1, 1), (1, 2)]) == 2
    other = config_from(small_run | EXAMPLE | {"seed": 9, "learning_rate": 2e-3})
    assert _answers(other, tmp_path, [(2, 1), (2, 2)]) == 0


def _direct(folder, floor=None):
    state = RecordDict()
    return NodeLedger(Node(0, floor or Floor(), state=folder, simulated=True), state)


def _pay(folder, config, number=1, floor=None, times=1):
    _direct(folder, floor).answer(
        config, number, "1/m", "client", GaussianMechanism(1.0, 4.0), times
    )


def test_distributed_dp_counts_for_ever(small_run, tmp_path):
    """S4: planned for two rounds, asked 60 times with one model and one `server-round`."""
    from fedvlm.federation.private_client import distributed_mechanism

    config = config_from(small_run | DISTRIBUTED)
    mechanism = distributed_mechanism(config, 500)
    answered = 0
    for session in range(60):
        try:
            _direct(tmp_path).answer(config, 1, f"{session}/m", "client", mechanism)
            answered += 1
        except BudgetExceeded:
            pass
    assert answered == 2
    assert _direct(tmp_path).spent(config, "client") <= 6.0


def test_the_owner_s_budget_holds_over_all_runs(tmp_path):
    floor = Floor(epsilon=2.0, delta=1e-5)
    answered = 0
    for run in range(20):  # each run promises little, and is another one
        config = config_from({"seed": run, "dp": "example", "epsilon": 1.5, "delta": 1e-5})
        try:
            _pay(tmp_path, config, floor=floor)
            answered += 1
        except BudgetExceeded:
            pass
    assert 1 < answered < 20
    assert _direct(tmp_path, floor).spent(config, "client") <= 2.0


def test_a_run_s_own_promise_holds_below_the_owner_s_budget(tmp_path):
    floor = Floor(epsilon=50.0, delta=1e-5)
    config = config_from({"dp": "example", "epsilon": 1.2, "delta": 1e-5})
    _pay(tmp_path, config, floor=floor)
    with pytest.raises(BudgetExceeded, match="this node's budget"):
        for _ in range(20):
            _pay(tmp_path, config, floor=floor)


def test_the_answers_of_all_runs_are_limited_without_dp_too(tmp_path):
    floor = Floor(rounds=3)
    for run in range(3):
        _direct(tmp_path, floor).answer(config_from({"seed": run}), 1, f"{run}/m")
    with pytest.raises(RefusedError, match="given 3 answers, all that floor.rounds allows"):
        _direct(tmp_path, floor).answer(config_from({}), 1, "9/m")
    kept = json.loads((tmp_path / node_ledger.FILE).read_text())
    assert [entry[0] for entry in kept["last"]] == ["0/m", "1/m", "2/m"]


def test_it_is_on_the_disk_before_the_reply_leaves(tmp_path, monkeypatch):
    """Written, forced to the disk and renamed, the folder's entry too; its owner's alone."""
    import os

    calls = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or real_sync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("rename") or real_replace(a, b))
    _pay(tmp_path / "state", config_from({"dp": "example"}))
    assert calls == ["fsync", "rename", "fsync"]
    assert (tmp_path / "state" / node_ledger.FILE).stat().st_mode & 0o777 == 0o600


def test_a_refused_answer_is_not_counted(tmp_path):
    config = config_from({"dp": "example", "epsilon": 1.2, "delta": 1e-5})
    _pay(tmp_path, config)
    before = (tmp_path / node_ledger.FILE).read_text()
    with pytest.raises(BudgetExceeded):
        _pay(tmp_path, config, times=500)
    assert (tmp_path / node_ledger.FILE).read_text() == before


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "null", "[" * 100_000, '{"events": 3}', '{"events": {"client": 1}}'),
        *('{"answers": -1}', '{"answers": "9"}', '{"last": 1}', '{"runs": {"a": 1}}'),
        '{"events": {"client": [["?", 1]]}}',
    ],
)
def test_a_ledger_that_can_not_be_read_is_no_fresh_start(tmp_path, text):
    (tmp_path / node_ledger.FILE).write_text(text)
    with pytest.raises(IntegrityError, match="ledger"):
        _pay(tmp_path, config_from({"dp": "example"}))
    assert (tmp_path / node_ledger.FILE).read_text() == text


def test_a_node_that_lost_its_folder_counts_as_asked_in_every_round(tmp_path):
    config = config_from({"dp": "example", "epsilon": 3.0, "delta": 1e-5})
    _pay(tmp_path / "a", config, number=4)
    spent = _direct(tmp_path / "a").spent(config, "client")
    for number in range(1, 5):
        _pay(tmp_path / "b", config, number=number)
    assert spent == pytest.approx(_direct(tmp_path / "b").spent(config, "client"))


def test_noise_that_follows_from_the_seed_costs_a_round_once(tmp_path):
    config = config_from({"dp": "example", "epsilon": 1.2, "delta": 1e-5, "simulated_noise": True})
    for _ in range(30):
        _pay(tmp_path, config)
    with pytest.raises(BudgetExceeded):
        for number in range(2, 30):
            _pay(tmp_path, config, number=number)


def test_a_node_that_has_told_all_still_adds_its_noise(small_run):
    """Bare zeros in the place of who can't pay would leave the others' sum too little noise."""
    from fedvlm.federation.local_round import _trained
    from fedvlm.federation.private_client import distributed_mechanism

    task = load_task(config_from(small_run | DISTRIBUTED), client=0)
    task.reset()
    ledger = NodeLedger(Node(0, Floor(rounds=1), simulated=True), RecordDict())
    for number in (1, 2):
        sent, told = _trained(task, 0, number, ledger, "1/m")
        assert told == {"num-examples": 1}
        variance = distributed_mechanism(task.config, task.view.size).local_variance
        assert 0.8 * variance < sent.var()  # noise of its share, and more where it trained
    assert sent.var() < 1.2 * variance


def test_t1_a_round_of_simulated_noise_pays_for_no_real_one(tmp_path):
    """The same number in a run whose noise is real is another answer, and costs."""
    told = {"dp": "example", "epsilon": 3.0, "delta": 1e-5}
    simulated, real = config_from(told | {"simulated_noise": True}), config_from(told)
    _pay(tmp_path, simulated)
    before = _direct(tmp_path).spent(real, "client")
    _pay(tmp_path, real)
    assert _direct(tmp_path).spent(real, "client") > before
