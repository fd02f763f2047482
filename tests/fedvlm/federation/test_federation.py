"""A real Flower federation in process: right sums, right errors, the same at every run."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from typer.testing import CliRunner

from fedvlm.config import config_from, to_run_config
from fedvlm.deploy.cli import app as deploy_app
from fedvlm.errors import ConfigError, DropoutError, IntegrityError, ProtocolError
from fedvlm.federation import InProcessGrid, Result, load_task, run_federation, simulate
from fedvlm.federation.checkpoint import Checkpoint, nothing_left
from fedvlm.federation.client_app import VECTOR, app
from fedvlm.federation.strategy import FederationStrategy, inner_strategy
from fedvlm.federation.terms import secure_policy


def test_the_same_seed_gives_the_same_result(small_run, tmp_path):
    one = simulate(config_from(small_run), out=tmp_path / "one")
    two = simulate(config_from(small_run), out=tmp_path / "two")
    assert one.without_times() == two.without_times()
    other = simulate(config_from(small_run | {"seed": 1}))
    assert other.summary != one.summary


def test_workers_do_not_change_the_result(small_run):
    one, two = (simulate(config_from(small_run | {"workers": n})) for n in (1, 3))
    a, b = one.without_times(), two.without_times()
    a["config"]["server"].pop("workers")
    b["config"]["server"].pop("workers")
    assert a == b


def test_a_round_is_the_weighted_mean_of_what_clients_trained(small_run, tmp_path):
    config = config_from(small_run | {"rounds": 1, "partition": "quantity", "alpha": 1.0})
    simulate(config, out=tmp_path)
    task = load_task(config)
    vectors, weights = [], []
    for client in range(config.data.clients):
        task = load_task(config)
        task.reset()
        task.train(client, 1)
        vectors.append(task.view.read())
        weights.append(len(task.splits.clients[client]))
    expected = np.average(np.stack(vectors), axis=0, weights=weights)
    from safetensors.numpy import load_file

    with np.load(tmp_path / "checkpoint.npz") as archive:
        assert np.allclose(archive["vector"], expected, atol=1e-6)
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")


def test_result_has_what_outsiders_rely_on(small_run, tmp_path):
    simulate(config_from(small_run | {"references": True, "reference_epochs": 1}), out=tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())
    assert {"summary", "rounds", "privacy", "protection", "leakage", "config", "versions",
            "seed"} <= set(found)  # fmt: skip
    assert {"zero_shot", "local_only", "federated", "central", "ood_zero_shot",
            "ood_federated"} <= set(found["summary"])  # fmt: skip
    assert found["privacy"] is None
    assert found["protection"]["name"] == "plain"
    for entry in found["rounds"][1:]:
        assert {"round", "upload_bytes_per_client", "download_bytes_per_client",
                "client_seconds", "server_seconds"} <= set(entry)  # fmt: skip
        # One flat float32 vector and next to nothing else.
        assert 0 < entry["upload_bytes_per_client"] - 4 * found["adapter"]["parameters"] < 1000
    assert Result.load(tmp_path).to_json() == (tmp_path / "result.json").read_text().strip()


@pytest.mark.parametrize("adapter", ["lora", "ffa-lora"])
def test_threads_start_from_the_same_adapter(small_run, adapter):
    """U5: peft draws from torch's one generator; threads that did so at once all got another A.

    References then differed from run to run, and under FFA-LoRA so did the A that nobody sends.
    """
    config = config_from(small_run | {"adapter": adapter})
    expected = load_task(config)
    barrier = threading.Barrier(6)

    def frozen(task):
        pairs = sorted(task.model.vlm.backbone.named_parameters())
        return np.concatenate([p.detach().numpy().ravel() for name, p in pairs if "lora" in name])

    def build(_):
        barrier.wait()
        task = load_task(config)
        return task.initial, frozen(task)

    with ThreadPoolExecutor(6) as pool:
        for initial, weights in pool.map(build, range(6)):
            assert np.array_equal(initial, expected.initial)
            assert np.array_equal(weights, frozen(expected))


def test_references_are_computed_once(small_run, monkeypatch):
    from fedvlm.federation import references

    config = config_from(small_run | {"references": True, "reference_epochs": 1, "rounds": 1})
    first = simulate(config)
    monkeypatch.setattr(references, "_compute", lambda *_: pytest.fail("computes again"))
    assert simulate(config).summary == first.summary


@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm", "fedadam"])
def test_an_interrupted_run_goes_on(small_run, tmp_path, optimizer):
    settings = small_run | {"server_optimizer": optimizer, "server_learning_rate": 0.1}
    config = config_from(settings)
    whole = simulate(config, out=tmp_path / "whole")

    class StopError(Exception):
        pass

    def stop(entry):
        if entry["round"] == 2:
            raise StopError

    with pytest.raises(StopError):
        simulate(config, out=tmp_path / "cut", on_round=stop)
    assert not (tmp_path / "cut" / "result.json").exists()
    resumed = simulate(config, out=tmp_path / "cut", resume=True)
    assert resumed.without_times()["rounds"] == whole.without_times()["rounds"]


def test_resuming_what_is_not_there_or_not_the_same(small_run, tmp_path):
    config = config_from(small_run | {"rounds": 2})
    with pytest.raises(ConfigError, match="nothing to resume"):
        simulate(config, out=tmp_path, resume=True)
    simulate(config, out=tmp_path)
    for changed, message in (
        ({"rounds": 1}, r"training.rounds was 2, is 1; rounds can be added only"),
        ({"learning_rate": 0.5}, r"training.learning_rate was 0.008, is 0.5"),
        ({"rank": 3}, "adapter.rank was 2, is 3"),
        ({"clients": 4, "alpha": 2.0}, r"data.clients was 3, is 4, data.alpha was 0.3, is 2.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            simulate(config_from(small_run | {"rounds": 2} | changed), out=tmp_path, resume=True)
    with pytest.raises(IntegrityError, match="another schema"):
        Checkpoint.load(tmp_path, config, "0" * 64)
    (tmp_path / "checkpoint.npz").write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="is broken"):
        simulate(config, out=tmp_path, resume=True)


def test_rounds_are_added_to_a_finished_run(small_run, tmp_path):
    """U2: more rounds can be added; under DP the noise was planned for those that were named."""
    one = simulate(config_from(small_run | {"rounds": 1}), out=tmp_path)
    two = simulate(config_from(small_run | {"rounds": 2}), out=tmp_path, resume=True)
    assert two.rounds[:2] == one.rounds
    assert [entry["round"] for entry in two.rounds] == [0, 1, 2]
    private = {"dp": "client", "clip_norm": 0.5, "delta": 1e-2}
    simulate(config_from(small_run | private | {"rounds": 1}), out=tmp_path / "dp")
    with pytest.raises(ConfigError, match="under DP not: the noise was planned for them"):
        simulate(config_from(small_run | private), out=tmp_path / "dp", resume=True)


def test_a_finished_run_has_nothing_left_to_do(small_run, tmp_path):
    """Its result stays, audit and all; without a result, or with rounds to go, there is work."""
    config = config_from(small_run | {"rounds": 1})
    audited = replace(simulate(config, out=tmp_path), leakage=[{"attack": "of an audit"}])
    audited.save(tmp_path)
    assert nothing_left(tmp_path, config) == (
        "nothing was left to do: all 1 rounds are done; --set rounds=2 adds one"
    )
    text = (tmp_path / "result.json").read_text()
    assert simulate(config, out=tmp_path, resume=True) == audited
    assert (tmp_path / "result.json").read_text() == text

    told = CliRunner().invoke(
        deploy_app, ["run", str(tmp_path), "--out", str(tmp_path), "--resume"]
    )
    assert (told.exit_code, told.stdout.split(":")[0]) == (0, "nothing was left to do")

    assert nothing_left(tmp_path, config_from(small_run | {"rounds": 2})) == ""
    (tmp_path / "result.json").unlink()
    assert nothing_left(tmp_path, config) == ""
    again = simulate(config, out=tmp_path, resume=True)
    assert again.rounds == audited.rounds
    assert again.leakage == []


def test_nothing_of_an_earlier_run_passes_for_a_later_one(small_run, tmp_path):
    simulate(config_from(small_run | {"rounds": 2, "transcript": True}), out=tmp_path)
    simulate(config_from(small_run | {"rounds": 1, "transcript": True}), out=tmp_path)
    rounds = sorted(path.name for path in (tmp_path / "transcript").glob("round-*"))
    assert rounds == ["round-001.npz"]


def test_a_transcript_holds_what_each_party_saw(small_run, tmp_path):
    config = config_from(small_run | {"transcript": True})
    simulate(config, out=tmp_path)
    index = json.loads((tmp_path / "transcript" / "index.json").read_text())
    assert index["seen_by"] == {"global_adapter": ["server", "client"], "updates": ["server"]}
    with np.load(tmp_path / "transcript" / "round-001.npz") as one:
        assert one["updates"].shape == (3, one["global_adapter"].size)
        mean = np.average(one["updates"], axis=0, weights=one["num_examples"])
    with np.load(tmp_path / "transcript" / "round-002.npz") as two:
        assert np.allclose(two["global_adapter"], mean, atol=1e-6)


@pytest.mark.parametrize("adapter", ["ffa-lora", "prompt", "feature"])
def test_every_adapter_federates(small_run, adapter):
    result = simulate(config_from(small_run | {"adapter": adapter, "rounds": 1}))
    assert result.adapter["kind"] == adapter
    assert len(result.rounds) == 2


def test_a_fraction_of_clients_is_drawn_by_the_seed(small_run, tmp_path):
    config = config_from(small_run | {"fraction": 0.67, "transcript": True})
    seen = []
    for name in ("one", "two"):
        simulate(config, out=tmp_path / name)
        drawn = []
        for path in sorted((tmp_path / name / "transcript").glob("round-*.npz")):
            with np.load(path) as archive:
                drawn.append(sorted(archive["clients"].tolist()))
        seen.append(drawn)
    assert seen[0] == seen[1]
    assert all(len(drawn) == 2 for drawn in seen[0])


def _strategy(config):
    task = load_task(config)
    return FederationStrategy(inner_strategy(config), config, task.view.schema), task


def _start(strategy, task, client_app, config):
    grid = InProcessGrid(client_app, config.data.clients, to_run_config(config))
    return strategy.start(grid, ArrayRecord({VECTOR: Array(task.view.read())}), num_rounds=1)


def test_a_client_that_fails_is_left_out(small_run):
    config = config_from(small_run)
    strategy, task = _strategy(config)

    def flaky(message, context):
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("secret of client 2")
        return app(message, context)

    _start(strategy, task, flaky, config)
    assert strategy.costs[1].clients == 2


def test_the_server_does_not_learn_why_a_client_failed(small_run):
    grid = InProcessGrid(lambda m, c: 1 / 0, 1)
    message = Message(RecordDict(), dst_node_id=grid.node_ids[0], message_type="train")
    (reply,) = grid.send_and_receive([message])
    assert reply.error.reason == "client app failed"


def test_one_client_s_update_is_no_average(small_run):
    config = config_from(small_run)
    strategy, task = _strategy(config)

    def alone(message, context):
        if context.node_config["partition-id"] != 0:
            raise RuntimeError
        return app(message, context)

    _start(strategy, task, alone, config)
    assert "1 of 3 clients answered" in strategy.abandoned[1]


def test_a_nan_never_reaches_the_model(small_run):
    config = config_from(small_run)
    strategy, task = _strategy(config)

    def poisoned(message, context):
        vector = np.full(task.view.size, np.nan, dtype=np.float32)
        metrics = MetricRecord({"num-examples": 1, "train-loss": 0.0, "client-seconds": 0.0})
        arrays = ArrayRecord({VECTOR: Array(vector)})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    before = task.view.read()
    result = _start(strategy, task, poisoned, config)
    assert "0 of 3 clients answered" in strategy.abandoned[1]
    assert not result.arrays or np.array_equal(result.arrays[VECTOR].numpy(), before)


def test_a_client_refuses_an_adapter_of_another_schema(small_run):
    config = config_from(small_run)
    task = load_task(config)
    content = RecordDict(
        {
            "arrays": ArrayRecord({VECTOR: Array(task.view.read())}),
            "config": ConfigRecord({"schema": "0" * 64, "server-round": 1}),
        }
    )
    grid = InProcessGrid(app, config.data.clients, to_run_config(config))
    message = Message(content, dst_node_id=grid.node_ids[0], message_type="train")
    (reply,) = grid.send_and_receive([message])
    assert reply.has_error()
    assert isinstance(grid.errors[grid.node_ids[0]], IntegrityError)


def test_a_client_s_own_error_is_shown_in_a_simulation(small_run, monkeypatch):
    from fedvlm.federation.task import Task

    def broken(self, client, server_round):
        raise IntegrityError("disk of the client is on fire")

    monkeypatch.setattr(Task, "train", broken)
    with pytest.raises(IntegrityError, match="on fire"):
        simulate(config_from(small_run))


def test_messages_are_copies(small_run):
    seen = []

    def keep(message, context):
        seen.append(message)
        context.state["count"] = MetricRecord({"n": len(seen)})
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(keep, 2)
    content = RecordDict({"m": MetricRecord({"x": 1})})
    message = Message(content, dst_node_id=grid.node_ids[0], message_type="train")
    (reply,) = grid.send_and_receive([message])
    seen[0].content["m"]["x"] = 5
    assert content["m"]["x"] == 1
    assert reply.content["m"]["x"] == 1
    assert "count" in grid.contexts[grid.node_ids[0]].state
    assert "count" not in grid.contexts[grid.node_ids[1]].state


@pytest.mark.parametrize("protect", ["secagg", "secagg-active"])
def test_secure_aggregation_gives_the_plain_adapter_within_quantisation(
    small_run, tmp_path, protect
):
    # One round: in the next one AdamW's first step, ± the rate, would blow up any rounding.
    settings = small_run | {"rounds": 1, "clients": 4, "transcript": True}
    plain = simulate(config_from(settings), out=tmp_path / "plain")
    secure = simulate(config_from(settings | {"protect": protect}), out=tmp_path / "secure")
    vectors = []
    for name in ("plain", "secure"):
        with np.load(tmp_path / name / "checkpoint.npz") as archive:
            vectors.append(archive["vector"])
    policy = secure_policy(config_from(settings | {"protect": protect}))
    examples = np.mean(plain.data["client_pairs"])
    rms = policy.plan.rms_error(4) * policy.max_weight / examples
    error = np.abs(vectors[0] - vectors[1])
    # All values that did not move share one fraction of a step, at worst a half: the bound is met.
    assert 0 < np.sqrt(np.mean(error**2)) < 1.1 * rms  # 8 standard deviations of 3,776 values
    assert error.max() < 8 * rms
    entry = secure.rounds[1]
    trips = ["advertise", "share", "mask", "commit", "unmask"]
    if protect == "secagg":
        trips.remove("commit")
    assert [trip["trip"] for trip in entry["trips"]] == trips
    assert all(trip["answered"] == 4 for trip in entry["trips"])
    assert entry["clients"] == 4
    assert entry["train_loss"] == pytest.approx(plain.rounds[1]["train_loss"], abs=1e-3)
    index = json.loads((tmp_path / "secure" / "transcript" / "index.json").read_text())
    assert "updates" not in index["seen_by"]
    with np.load(tmp_path / "secure" / "transcript" / "round-001.npz") as seen:
        assert seen.files == ["global_adapter"]


@pytest.mark.parametrize("protect", ["secagg", "he"])
def test_a_run_in_which_no_round_succeeded_is_no_success(small_run, tmp_path, protect):
    """An update beyond the bound is refused, the model stays, and nothing looks like one."""
    settings = small_run | {"rounds": 2, "protect": protect, "update_bound": 1e-6}
    seen = []
    with pytest.raises(ProtocolError, match="none of 2 rounds succeeded.* The last one: "):
        simulate(config_from(settings), out=tmp_path, on_round=seen.append)
    assert [entry["round"] for entry in seen] == [0, 1, 2]
    assert all(entry["clients"] == 0 and entry["abandoned"] for entry in seen[1:])
    assert not (tmp_path / "adapter").exists()
    assert not (tmp_path / "result.json").exists()
    with np.load(tmp_path / "checkpoint.npz") as archive:
        assert np.array_equal(archive["vector"], load_task(config_from(settings)).initial)


@pytest.mark.parametrize("protect", ["secagg", "he"])
def test_what_no_round_can_satisfy_is_refused_before_the_first_message(
    small_run, protect, monkeypatch
):
    asked = []
    monkeypatch.setattr(InProcessGrid, "push_messages", lambda *_: asked.append(1))
    settings = small_run | {"clients": 5, "fraction": 0.4, "protect": protect}
    with pytest.raises(ConfigError, match="sums at least 3 clients, and a round asks 2"):
        simulate(config_from(settings))
    assert asked == []


def test_too_few_nodes_are_named_before_the_first_round(small_run):
    config = config_from(small_run | {"join_timeout": 0.1})
    grid = InProcessGrid(app, 1, to_run_config(config))
    with pytest.raises(DropoutError, match="1 of 3 nodes came within 0.1 s"):
        run_federation(grid, config)


def test_half_of_the_clients_under_secure_aggregation(small_run, tmp_path):
    """Five of ten were asked, and every round was abandoned."""
    settings = small_run | {"clients": 10, "fraction": 0.5, "rounds": 1, "protect": "secagg"}
    result = simulate(config_from(settings))
    assert result.rounds[1]["clients"] == 5
    parameters = result.protection["parameters"]
    assert parameters["min_clients"] == 4
    assert parameters["weights"] == "by examples, up to 1,000"


def test_a_client_under_secure_aggregation_gives_no_plain_answer(small_run):
    config = config_from(small_run | {"protect": "secagg"})
    task = load_task(config)
    arrays = ArrayRecord({VECTOR: Array(task.initial)})
    settings = ConfigRecord({"schema": task.view.schema, "server-round": 1})
    content = RecordDict({"arrays": arrays, "config": settings})
    grid = InProcessGrid(app, config.data.clients, to_run_config(config))
    (reply,) = grid.send_and_receive(
        [Message(content, dst_node_id=grid.node_ids[0], message_type="train")]
    )
    assert reply.has_error()
    assert reply.error.reason.startswith("secagg: ")


def test_secure_aggregation_needs_three_clients(small_run):
    with pytest.raises(ConfigError, match="at least 3 clients"):
        simulate(config_from(small_run | {"clients": 2, "protect": "secagg"}))


def test_encrypted_sums_give_the_plain_adapter_within_the_noise(small_run, tmp_path):
    settings = small_run | {"rounds": 1, "clients": 4, "transcript": True}
    plain = simulate(config_from(settings), out=tmp_path / "plain")
    result = simulate(config_from(settings | {"protect": "he"}), out=tmp_path / "he")
    vectors = []
    for name in ("plain", "he"):
        with np.load(tmp_path / name / "checkpoint.npz") as archive:
            vectors.append(archive["vector"])
    entry = result.rounds[1]
    # The noise is on a sum weighted by examples / 1,000; 8 standard deviations: 1e-15 an entry.
    noise = entry["noise_of_sum"] * 1000 / sum(plain.data["client_pairs"])
    assert 0 < np.abs(vectors[0] - vectors[1]).max() < 8 * noise + 1e-6
    assert [trip["trip"] for trip in entry["trips"]] == ["encrypt", "decrypt"]
    assert entry["clients"] == 4
    parameters = result.adapter["parameters"]
    # 7.5 bytes a parameter in whole ciphertexts of 4,096, and a reply in clear from one client.
    ciphertexts = -(-(parameters + 4) // 4096) * 4096
    due = 7.5 * ciphertexts + 8 * (parameters + 4) / 4
    assert due < entry["upload_bytes_per_client"] < due + 2000 + ciphertexts // 32
    assert entry["train_loss"] == pytest.approx(plain.rounds[1]["train_loss"], abs=1e-2)
    assert "must not collude" in result.protection["parameters"]["trust"]
    index = json.loads((tmp_path / "he" / "transcript" / "index.json").read_text())
    assert "updates" not in index["seen_by"]
    with np.load(tmp_path / "he" / "transcript" / "round-001.npz") as seen:
        assert seen.files == ["global_adapter"]


def test_encrypted_sums_need_three_clients(small_run):
    with pytest.raises(ConfigError, match="at least 3 clients"):
        simulate(config_from(small_run | {"clients": 2, "protect": "he"}))
