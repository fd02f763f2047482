"""Federations under DP: budgets, resume, what is written down, what leaves a client."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from fedvlm.config import config_from, to_run_config
from fedvlm.errors import BudgetExceeded, ConfigError
from fedvlm.federation import simulate
from fedvlm.federation.private_client import example_settings
from fedvlm.federation.strategy import FederationStrategy
from fedvlm.leakage.vantage import View

CLIENT = {"dp": "client", "epsilon": 5.0, "clip_norm": 0.5, "fraction": 0.6}
EXAMPLE = {"dp": "example", "epsilon": 5.0, "delta": 1e-4, "learning_rate": 1e-3}


@pytest.mark.parametrize("adaptive", [False, True])
def test_client_level(small_run, adaptive, tmp_path):
    settings = {**small_run, **CLIENT, "adaptive": adaptive, "simulated_noise": True}
    result = simulate(config_from(settings), out=tmp_path / "whole")
    privacy = result.privacy
    assert privacy is not None
    assert privacy["unit"] == "client"
    assert privacy["simulated_noise"] is True
    assert 4.9 < privacy["epsilon"] <= 5.0
    spent = [entry["epsilon"] for entry in result.rounds[1:]]
    assert spent == sorted(spent)
    assert spent[-1] == privacy["epsilon"]
    # Who came, how long it took and how well it learned are not told.
    for entry in result.rounds[1:]:
        assert entry["clients"] == 2
        assert entry["train_loss"] is None
        assert entry["client_seconds"] is None
    assert (privacy["final_clip_norm"] != 0.5) is adaptive
    again = simulate(config_from(settings))
    assert again.without_times() == result.without_times()


def test_a_round_that_drew_nobody_looks_like_any_other(small_run, tmp_path):
    settings = {**small_run, **CLIENT, "fraction": 0.3, "rounds": 4, "simulated_noise": True}
    result = simulate(config_from(settings | {"transcript": True}), out=tmp_path)
    rounds = [np.load(tmp_path / "transcript" / f"round-{n:03d}.npz") for n in range(1, 5)]
    came = [len(one["clients"]) if "clients" in one.files else 0 for one in rounds]
    assert min(came) == 0 < max(came)
    for key in ("clients", "download_bytes_per_client", "upload_bytes_per_client"):
        assert len({entry[key] for entry in result.rounds[1:]}) == 1, key
    # The noise alone moved the adapter, and the transcript has the step.
    assert View.from_run(tmp_path, "V2").need("aggregates", "test").shape[0] == 4


@pytest.mark.parametrize("asked", [False, True])
def test_a_result_tells_nothing_of_the_pairs_that_no_noise_covers(small_run, asked):
    """N3: a hash over all private pairs, counts by client, and references without noise."""
    settings = {**small_run, **CLIENT, "rounds": 1, "reference_epochs": 1}
    settings.pop("references")
    result = simulate(config_from(settings | ({"references": True} if asked else {})))
    assert set(result.data) == {"name", "pairs", "parts", "mean_pairs", "task", "metric"}
    assert result.privacy is not None
    told = {"local_only", "local_only_best", "central"} if asked else set()
    assert set(result.privacy["outside_epsilon"]) == told
    assert (result.summary["central"] is not None) is asked


def test_released_noise_is_not_the_seeds(small_run, tmp_path):
    def adapter(name, **changes):
        config = config_from({**small_run, **CLIENT, "rounds": 1, **changes})
        result = simulate(config, out=tmp_path / name)
        assert result.privacy is not None
        assert result.privacy["simulated_noise"] is bool(changes)
        return (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()

    assert adapter("a") != adapter("b")
    assert adapter("c", simulated_noise=True) == adapter("d", simulated_noise=True)


def test_example_level_and_its_resume(small_run, tmp_path):
    settings = {**small_run, **EXAMPLE, "simulated_noise": True}
    config = config_from(settings)
    whole = simulate(config, out=tmp_path / "whole")
    privacy = whole.privacy
    assert privacy is not None
    assert privacy["unit"] == "example"
    assert len(privacy["epsilon_by_client"]) == 3
    assert 4.9 < privacy["epsilon"] <= 5.0
    for entry in whole.rounds[1:]:
        assert entry["train_loss"] is None
        assert entry["client_seconds"] is None

    class StopError(Exception):
        pass

    def stop(entry):
        if entry["round"] == 2:
            raise StopError

    with pytest.raises(StopError):
        simulate(config, out=tmp_path / "cut", on_round=stop)
    resumed = simulate(config, out=tmp_path / "cut", resume=True)
    assert resumed.privacy == whole.privacy
    assert resumed.rounds[3]["epsilon"] == whole.rounds[3]["epsilon"]
    assert resumed.without_times() == whole.without_times()


@pytest.mark.parametrize("dp", ["example", "distributed"])
def test_a_round_that_was_cut_is_spent_after_a_resume(small_run, dp, tmp_path, monkeypatch):
    """Its noised messages have been sent, and run again they are noised anew."""
    protect = "secagg" if dp == "distributed" else "plain"
    settings = {**small_run, **EXAMPLE, "dp": dp, "protect": protect, "delta": 1e-2}
    config = config_from(settings)

    def cut(self, server_round, replies):
        if server_round == 2:
            raise KeyboardInterrupt
        return real(self, server_round, replies)

    real = FederationStrategy.aggregate_train
    with monkeypatch.context() as patch:
        patch.setattr(FederationStrategy, "aggregate_train", cut)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, out=tmp_path)
    seen = []
    # The noise is made for three rounds; the one that was cut was the second.
    with pytest.raises(BudgetExceeded):
        simulate(config, out=tmp_path, resume=True, on_round=seen.append)
    assert [entry["round"] for entry in seen] == [0, 1, 2]
    assert 4.9 < seen[-1]["epsilon"] <= 5.0


def test_a_client_with_another_number_is_taken_for_one_that_spent_all_along():
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

    from fedvlm.federation import InProcessGrid
    from fedvlm.federation.client_app import VECTOR
    from fedvlm.federation.private import ExampleLevelStrategy
    from fedvlm.federation.strategy import inner_strategy
    from fedvlm.federation.subset import Subset

    config = config_from({**EXAMPLE, "clients": 2, "rounds": 3})
    strategy = ExampleLevelStrategy(inner_strategy(config), config, 128)
    start = ArrayRecord({VECTOR: Array(np.zeros(4, dtype=np.float32))})
    grid = InProcessGrid(lambda m, c: Message(RecordDict(), reply_to=m), 4)
    old, new = list(grid.node_ids[:2]), list(grid.node_ids[2:])
    for number, nodes in ((1, old), (2, old), (3, new)):  # both nodes started anew
        list(strategy.configure_train(number, start, ConfigRecord(), Subset(grid, nodes)))
    assert strategy.spent() == pytest.approx(5.0, rel=0.02)


@pytest.mark.parametrize("protect", ["secagg", "he"])
def test_example_level_under_a_protected_sum(small_run, protect, tmp_path):
    settings = {**small_run, **EXAMPLE, "simulated_noise": True, "rounds": 1}
    plain = simulate(config_from(settings), out=tmp_path / "plain")
    config = config_from(settings | {"protect": protect})
    summed = simulate(config, out=tmp_path / protect)
    assert summed.privacy == plain.privacy
    entry = summed.rounds[1]
    assert entry["clients"] == config.data.clients
    assert entry["train_loss"] is None
    vectors = []
    for name in ("plain", protect):
        with np.load(tmp_path / name / "checkpoint.npz") as archive:
            vectors.append(archive["vector"])
    # Every client weighs 1. Eight standard deviations of the noise: 1e-15 an entry; or the error
    # of rounding to integers.
    noise = entry["noise_of_sum"] / config.data.clients if protect == "he" else 1e-5
    assert 0 < np.abs(vectors[0] - vectors[1]).max() < 8 * noise + 1e-6


def test_an_epoch_of_hours_costs_no_update_under_encryption(small_run, monkeypatch):
    hours = itertools.count(0.0, 7200.0)
    clock = SimpleNamespace(perf_counter=lambda: next(hours))
    monkeypatch.setattr("fedvlm.federation.local_round.time", clock)
    config = config_from(small_run | {"protect": "he", "rounds": 1, "node_scores": "none"})
    entry = simulate(config).rounds[1]
    assert entry["clients"] == config.data.clients
    assert entry["client_seconds"] is None  # beyond what a sum under encryption has room for
    assert math.isfinite(entry["train_loss"])


@pytest.mark.parametrize("dp", ["client", "distributed"])
def test_noise_of_the_server_or_on_integers_is_not_summed_under_encryption(dp):
    with pytest.raises(ConfigError, match="protect"):
        config_from({"dp": dp, "protect": "he"})


def test_the_plan_does_not_depend_on_a_clients_size(small_run):
    config = config_from({**small_run, **EXAMPLE})
    assert example_settings(config, 48) == example_settings(config, 50)


def test_a_budget_that_is_spent_stops_the_run(small_run, monkeypatch, tmp_path):
    from fedvlm.federation import private

    plans = []

    def too_little(**asked):
        found = dataclasses.replace(real(**asked), noise_multiplier=1.0)
        plans.append(found)
        return found

    real = private.plan
    monkeypatch.setattr(private, "plan", too_little)
    seen = []
    config = config_from({**small_run, **CLIENT, "fraction": 1.0, "epsilon": 6.5})
    with pytest.raises(BudgetExceeded):
        simulate(config, on_round=lambda entry: seen.append(entry))
    assert plans
    assert 1 <= len(seen) - 1 < config.training.rounds
    assert seen[-1]["epsilon"] <= 6.5


def test_settings_are_checked():
    for bad in (
        {"dp": "some"},
        {"epsilon": 0},
        {"delta": 1.0},
        {"clip_norm": 0.0},
        {"dp": "distributed"},
    ):
        with pytest.raises(ConfigError):
            config_from(bad)


@pytest.mark.parametrize("told", [4, 40, 10**9, -3, float("nan")])
def test_weights_are_capped_whatever_a_client_says(told, monkeypatch):
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

    from fedvlm.federation import InProcessGrid, private
    from fedvlm.federation.client_app import VECTOR
    from fedvlm.federation.private import ClientLevelStrategy
    from fedvlm.federation.strategy import inner_strategy
    from fedvlm.privacy import SimulatedNoise
    from fedvlm.seeds import ExperimentSeed

    class Silent(SimulatedNoise):
        def gaussian(self, std, size):
            return np.zeros(size)

    monkeypatch.setattr(private, "noise_source", lambda *_: Silent(ExperimentSeed(0)))
    settings = {**CLIENT, "fraction": 1.0, "clients": 2, "rounds": 1, "weight_cap": 8}
    config = config_from(settings)
    strategy = ClientLevelStrategy(inner_strategy(config), config)
    grid = InProcessGrid(lambda m, c: Message(RecordDict(), reply_to=m), 2)
    start = ArrayRecord({VECTOR: Array(np.zeros(4, dtype=np.float32))})
    messages = list(strategy.configure_train(1, start, ConfigRecord(), grid))

    def reply(message, vector, examples):
        content = RecordDict(
            {
                "arrays": ArrayRecord({VECTOR: Array(np.array(vector, dtype=np.float32))}),
                "metrics": MetricRecord({"num-examples": examples}),
            }
        )
        return Message(content, reply_to=message)

    foreign = ArrayRecord({"other": Array(np.zeros(4, dtype=np.float32))})
    replies = [
        reply(messages[0], [9, 0, 0, 0], told),
        reply(messages[1], [0, 9, 0, 0], 8),
        # What can't be read counts as zero, and stops nothing.
        reply(messages[0], [9, 0, 0], 8),
        Message(RecordDict(), reply_to=messages[0]),
        Message(RecordDict({"arrays": foreign}), reply_to=messages[1]),
    ]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    weight = min(max(told, 0), 8) / 8 if told == told else 0.0
    assert arrays[VECTOR].numpy()[:2] == pytest.approx([weight * 0.25, 0.25])
    assert strategy.describe()["weight_cap"] == 8


def test_nothing_but_the_vector_leaves_a_client_under_example_dp(small_run):
    # A loss, a count or a time would be a release of its own.
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

    from fedvlm.federation import InProcessGrid
    from fedvlm.federation.client_app import VECTOR, app
    from fedvlm.federation.task import load_task

    config = config_from({**small_run, **EXAMPLE})
    task = load_task(config)
    content = RecordDict(
        {
            "arrays": ArrayRecord({VECTOR: Array(task.initial)}),
            "config": ConfigRecord({"schema": task.view.schema, "server-round": 1}),
        }
    )
    grid = InProcessGrid(app, config.data.clients, to_run_config(config))
    (reply,) = grid.send_and_receive(
        [Message(content, dst_node_id=grid.node_ids[0], message_type="train")]
    )
    assert not reply.has_error()
    assert set(reply.content) == {"arrays", "metrics"}
    assert list(reply.content.array_records["arrays"]) == [VECTOR]
    assert dict(reply.content.metric_records["metrics"]) == {"num-examples": 1}


@pytest.mark.parametrize("protect", ["he", "secagg", "secagg-active"])
def test_a_server_that_must_clip_is_not_kept_from_single_updates(protect):
    with pytest.raises(ConfigError, match="clips single updates at a trusted server"):
        config_from({"dp": "client", "protect": protect})


@pytest.mark.parametrize(
    "lie",
    [
        {"mean_pairs": 1},
        {"mean_pairs": 600},
        {"clients": 500, "mean_pairs": 48},
        {"batch_size": 2, "mean_pairs": 48},
        {"clip_norm": 1e3, "mean_pairs": 48},
        {"rounds": 50, "mean_pairs": 48},
    ],
)
def test_a_lie_about_public_facts_is_paid_for(lie, monkeypatch):
    """A node pays for the noise that it adds at the rate that it samples at, whatever is stated."""
    from types import SimpleNamespace

    from fedvlm.federation import private_client
    from fedvlm.privacy.losses import BankContrastive

    config = config_from({**EXAMPLE, **lie})
    paid, trained = [], []
    ledger = SimpleNamespace(answer=lambda *told: paid.append(told))
    loss = SimpleNamespace(factor=BankContrastive.factor)
    monkeypatch.setattr(private_client, "train_privately", lambda *told: trained.append(told))
    task = SimpleNamespace(
        config=config,
        rows=lambda client: np.arange(20),
        private_loss=lambda own, settings: (loss, None),
        model=SimpleNamespace(vlm=None),
        view=SimpleNamespace(size=3),
    )
    private_client.train_with_dp(task, 0, 1, ledger, "run")
    ((_, _, _, unit, mechanism, times),) = paid
    settings = trained[0][5]
    assert unit == "example"
    assert mechanism == settings.mechanism(loss)
    assert (mechanism.noise_multiplier, mechanism.sample_rate, times) == (
        settings.noise_multiplier,
        settings.sample_rate,
        settings.steps,
    )
