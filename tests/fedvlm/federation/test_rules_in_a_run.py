"""Aggregation rules in real federations: by hand, under protection, across a restart."""

import json
import os
import shutil
import stat

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedvlm.config import config_from
from fedvlm.errors import IntegrityError
from fedvlm.federation import load_task, simulate
from fedvlm.federation.exchange import Exchange
from fedvlm.federation.floor import Floor
from fedvlm.federation.installing import install
from fedvlm.federation.node import Node
from fedvlm.federation.personal import PersonalPart
from fedvlm.federation.rules import FedEx, layers_of, rule_of


@pytest.fixture
def run(small_run):
    """Two rounds over three clients with LoRA on the two projections alone: small and quick."""
    return small_run | {"rounds": 2, "targets": "visual_projection,text_projection"}


def state_of(folder):
    with np.load(folder / "checkpoint.npz") as archive:
        return archive["vector"]


def personal_vectors(folder, clients=3):
    out = []
    for number in range(clients):
        (path,) = (folder / "nodes" / str(number) / "personal").glob("*.json")
        out.append((path, json.loads(path.read_text())))
    return out


RULES = [
    {"share": "A"},
    {"share": "B"},
    {"share": "alternate"},
    {"rule": "flexlora", "sketch": 16},
    {"rule": "flexlora", "sketch": 16, "site_ranks": "1,2,1"},
    {"rule": "fedex", "sketch": 16},
    {"compression": "mask", "kept": 0.5},
]


def some(fast):
    """Mark all but a few rules as slow: each is two or three federations."""
    return [pytest.param(r, marks=[] if r in fast else [pytest.mark.slow]) for r in RULES]


@pytest.mark.parametrize("rule", some([{"share": "A"}, {"rule": "fedex", "sketch": 16}]), ids=str)
def test_secure_aggregation_gives_what_plain_sums_give(run, tmp_path, rule):
    """Every rule is a function of weighted sums: masks change nothing but the rounding."""
    # Adam takes the sign of what is nearly zero: a second round of products doubts it.
    run = run | rule | {"rounds": 1 if "rule" in rule else 2}
    plain = simulate(config_from(run), out=tmp_path / "plain")
    masked = simulate(config_from(run | {"protect": "secagg"}), out=tmp_path / "masked")
    assert not any(entry.get("abandoned") for entry in masked.rounds)
    one, two = state_of(tmp_path / "plain"), state_of(tmp_path / "masked")
    task = load_task(config_from(run))
    assert not np.array_equal(task.initial, one[: task.view.size])
    for layer in layers_of(task.view.layout):
        (b, a), (b2, a2) = layer.factors(one), layer.factors(two)
        assert np.allclose(b @ a, b2 @ a2, atol=2e-3)
    assert plain.rounds[0]["test_one_of_100"] == masked.rounds[0]["test_one_of_100"]


@pytest.mark.parametrize("rule", some([{"share": "A"}]), ids=str)
def test_an_interrupted_run_goes_on_to_the_same_adapter(run, tmp_path, rule):
    """The state, and what nodes keep, survive: also where a round is run again."""
    config = config_from(run | {"rounds": 3} | rule)
    whole = simulate(config, out=tmp_path / "whole")

    class StopError(Exception):
        pass

    def stop(entry):
        if entry["round"] == 2:
            raise StopError

    with pytest.raises(StopError):
        simulate(config, out=tmp_path / "cut", on_round=stop)
    # As if the server had died before it wrote round 2 down, which the nodes had answered.
    with pytest.raises(StopError):
        simulate(config, out=tmp_path / "again", on_round=lambda e: stop({"round": e["round"] + 1}))
    shutil.copy(tmp_path / "again" / "checkpoint.npz", tmp_path / "cut" / "checkpoint.npz")
    resumed = simulate(config, out=tmp_path / "cut", resume=True)
    assert resumed.without_times()["rounds"] == whole.without_times()["rounds"]
    assert np.array_equal(state_of(tmp_path / "cut"), state_of(tmp_path / "whole"))
    if rule.get("share") in ("A", "B"):
        pairs = zip(
            personal_vectors(tmp_path / "cut"), personal_vectors(tmp_path / "whole"), strict=True
        )
        for (_, one), (_, two) in pairs:
            assert one["parts"][-1] == two["parts"][-1]
            assert one["scores"] == two["scores"]
            assert one["scores"][0][0] == 3


@pytest.mark.parametrize("share", ["A", "B"])
def test_the_personal_part_stays_on_its_node(run, tmp_path, share):
    """Nothing but the other factor crosses, up or down; the file is its owner's alone."""
    result = simulate(config_from(run | {"share": share}), out=tmp_path)
    task = load_task(config_from(run))
    rule = rule_of(config_from(run | {"share": share}), task.view.layout)
    size = int(rule.common.sum())
    for entry in result.rounds[1:]:
        assert 0 < entry["upload_bytes_per_client"] - 4 * size < 1000
        assert 0 < entry["download_bytes_per_client"] - 4 * size < 1000
    state = state_of(tmp_path)
    assert np.array_equal(state[~rule.common], task.initial[~rule.common])
    assert not np.array_equal(state[rule.common], task.initial[rule.common])
    assert result.summary["federated"] is None
    assert result.adapter["personal"] == {"A": "B", "B": "A"}[share]
    parts = [json.dumps(kept["parts"][-1]) for _, kept in personal_vectors(tmp_path)]
    assert len(set(parts)) == 3
    if os.name != "nt":
        for path, _ in personal_vectors(tmp_path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_alternating_trains_one_factor_a_round(run, tmp_path):
    simulate(config_from(run | {"share": "alternate", "rounds": 1}), out=tmp_path)
    task = load_task(config_from(run))
    rule = rule_of(config_from(run | {"share": "alternate"}), task.view.layout)
    moved = state_of(tmp_path) != task.initial
    assert not moved[~rule.trained(1)].any()
    assert moved[rule.trained(1)].mean() > 0.5
    assert all(p.requires_grad for p in task.view.parameters)


def test_fedex_saves_what_it_scored(run, tmp_path):
    """The saved adapter, of a higher rank, does what adapter and correction do."""
    config = config_from(run | {"rule": "fedex", "sketch": 3})
    simulate(config, out=tmp_path)
    task = load_task(config)
    rule, state = rule_of(config, task.view.layout), state_of(tmp_path)
    assert isinstance(rule, FedEx)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    scale = config.adapter.alpha / config.adapter.rank
    assert told["lora_alpha"] / told["r"] == pytest.approx(scale)
    for layer, (u, v) in zip(rule.sketch.layers, rule.corrections(state), strict=True):
        b, a = layer.factors(state)
        name = layer.name.removeprefix("backbone.")
        big_a, big_b = (saved[f"{name}.lora_{which}.weight"] for which in "AB")
        assert np.abs(u @ v).max() > 0
        assert np.allclose(big_b @ big_a, b @ a + u @ v, atol=1e-6)
    # Installed, the base weights carry the correction; started anew, they are as they were.
    module = task.model.vlm.get_submodule(rule.sketch.layers[0].name)
    before = module.base_layer.weight.detach().clone()
    install(task, rule, state)
    u, v = rule.corrections(state)[0]
    moved = (module.base_layer.weight - before).detach().numpy()
    assert np.allclose(moved, scale * u @ v, atol=1e-6)
    install(task, rule, rule.start(task.initial))
    assert np.array_equal(module.base_layer.weight.detach().numpy(), before.numpy())


def test_a_site_of_low_rank_trains_at_its_rank(run, tmp_path):
    """Rows of A and columns of B beyond a site's rank stay zero, to the bit, through training."""
    config = config_from(run | {"rule": "flexlora", "site_ranks": "1,2,2"})
    task = load_task(config, client=0)
    rule = rule_of(config, task.view.layout)
    start = task.initial + np.float32(0.01)
    task.view.write(rule.for_site(start, 0))
    task.train(0, 1)
    for layer in layers_of(task.view.layout):
        b, a = layer.factors(task.view.read())
        assert not b[:, 1:].any()
        assert not a[1:].any()
        assert b[:, 0].any()


def test_rounding_narrows_the_lanes(run, tmp_path):
    """8 bits a coordinate: 2 bytes in place of 4, and the mean within the stated error."""
    plain = simulate(config_from(run | {"rounds": 1}), out=tmp_path / "plain")
    settings = run | {"rounds": 1, "protect": "secagg", "update_bound": 0.1}
    fine = simulate(config_from(settings), out=tmp_path / "fine")
    coarse = simulate(config_from(settings | {"compression": "rounding"}), out=tmp_path / "coarse")
    wide, narrow = (r.protection["parameters"]["bytes_per_parameter"] for r in (fine, coarse))
    assert (narrow, wide) == (2.0, 4.0)
    off = state_of(tmp_path / "coarse") - state_of(tmp_path / "plain")
    # Weights are taken of at most 1,000 examples: the mean's error grows by 1,000 over the mean.
    held = np.mean(plain.data["client_pairs"])
    error = 0.1 / (2**8 - 1) / np.sqrt(3) * 1000 / held
    assert np.sqrt(np.mean(off**2)) <= error


@pytest.mark.parametrize(
    ("optimizer", "share"),
    [
        ("fedyogi", "A"),
        pytest.param("fedadagrad", "both", marks=pytest.mark.slow),
        pytest.param("fedyogi", "both", marks=pytest.mark.slow),
    ],
)
def test_adaptive_optimisers_resume_on_what_is_shared(run, tmp_path, optimizer, share):
    settings = run | {"server_optimizer": optimizer, "server_learning_rate": 0.01, "share": share}
    whole = simulate(config_from(settings | {"rounds": 2}), out=tmp_path / "whole")
    config = config_from(settings)

    class StopError(Exception):
        pass

    def stop(entry):
        if entry["round"] == 1:
            raise StopError

    with pytest.raises(StopError):
        simulate(config, out=tmp_path / "cut", on_round=stop)
    resumed = simulate(config, out=tmp_path / "cut", resume=True)
    assert resumed.without_times()["rounds"] == whole.without_times()["rounds"]


@pytest.mark.slow
def test_momentum_resumes_on_what_is_shared(run, tmp_path):
    settings = run | {"server_optimizer": "fedavgm", "share": "A", "rounds": 3}
    config = config_from(settings)
    simulate(config, out=tmp_path / "whole")

    class StopError(Exception):
        pass

    def stop(entry):
        if entry["round"] == 2:
            raise StopError

    with pytest.raises(StopError):
        simulate(config, out=tmp_path / "cut", on_round=stop)
    simulate(config, out=tmp_path / "cut", resume=True)
    assert np.array_equal(state_of(tmp_path / "cut"), state_of(tmp_path / "whole"))


MASK = {"compression": "mask", "kept": 0.5}
CLIENT = {"dp": "client", "delta": 1e-2, "clip_norm": 0.5, "simulated_noise": True}
EXAMPLE = CLIENT | {"dp": "example"}


@pytest.mark.parametrize(
    "settings",
    [
        {"share": "A"} | EXAMPLE,
        {"share": "B"} | CLIENT,
        pytest.param({"share": "alternate"} | CLIENT, marks=pytest.mark.slow),
        pytest.param({"share": "B", "protect": "secagg"} | EXAMPLE, marks=pytest.mark.slow),
        pytest.param(MASK | EXAMPLE, marks=pytest.mark.slow),
        pytest.param(MASK | CLIENT, marks=pytest.mark.slow),
        pytest.param({"share": "A", "protect": "he"}, marks=pytest.mark.slow),
        pytest.param({"share": "alternate", "protect": "he"}, marks=pytest.mark.slow),
        pytest.param(MASK | {"protect": "he"}, marks=pytest.mark.slow),
        pytest.param({"rule": "fedex", "protect": "secagg-active"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_is_said_to_go_together_does(run, tmp_path, settings):
    """Under DP ε is within its budget, and the state is a whole adapter under every protection."""
    result = simulate(config_from(run | settings), out=tmp_path)
    assert not any(entry.get("abandoned") for entry in result.rounds)
    if "dp" in settings:
        assert result.privacy is not None
        assert 0 < result.privacy["epsilon"] <= 8.0
    task = load_task(config_from(run | settings))
    state = state_of(tmp_path)
    assert len(state) >= task.view.size
    assert not np.array_equal(state[: task.view.size], task.initial)


class TestPersonalPart:
    """The file that a node keeps."""

    def made(self, folder, **changes):
        from flwr.app import RecordDict

        config = config_from({"share": "A", **changes})
        return PersonalPart(Node(0, Floor(), state=folder), RecordDict(), config, "schema", 4)

    def test_a_round_run_again_starts_where_it_started(self, tmp_path):
        part = self.made(tmp_path)
        assert part.before(1) is None
        for number in (1, 2, 4):
            part.keep(number, np.full(4, number, dtype=np.float32), score=number / 10)
        assert part.before(4)[0] == 2
        assert part.before(5)[0] == 4
        assert part.before(1) is None
        assert part.scores() == [(1, 0.1), (2, 0.2), (4, 0.4)]
        part.keep(4, np.full(4, 7, dtype=np.float32))
        assert part.before(4)[0] == 2
        assert part.before(9)[0] == 7

    def test_more_rounds_are_the_same_run_and_another_seed_is_not(self, tmp_path):
        self.made(tmp_path).keep(1, np.ones(4, dtype=np.float32))
        assert self.made(tmp_path, rounds=99).before(2) is not None
        assert self.made(tmp_path, seed=1).before(2) is None
        assert self.made(tmp_path, share="B").before(2) is None

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version":1,"parts":[{}],"scores":[]}'])
    def test_a_broken_file_is_no_fresh_start(self, tmp_path, text):
        part = self.made(tmp_path)
        part.keep(1, np.ones(4, dtype=np.float32))
        part.path.write_text(text)
        with pytest.raises(IntegrityError, match="not the personal part"):
            part.before(2)


class TestWhatComes:
    """A server that sends what the rule doesn't: nothing is trained, nothing leaves."""

    @pytest.fixture
    def opened(self, run):
        def make(rule, number=1):
            from flwr.app import Context, RecordDict

            config = config_from(run | rule)
            context = Context(1, 1, {}, RecordDict(), {})
            task = load_task(config, client=0)
            node = Node(0, Floor(), simulated=True)
            return Exchange(task, node, context, number), task

        return make

    def config(self, task, **more):
        from flwr.app import ConfigRecord

        return ConfigRecord({"schema": task.view.schema, **more})

    def test_wrong_lengths_and_values(self, opened):
        exchange, task = opened({"share": "A"})
        rule = rule_of(task.config, task.view.layout)
        size = int(rule.common.sum())
        good = np.zeros(size, dtype=np.float32)
        bad = good.copy()
        bad[3] = np.nan
        for vector in (bad, good[:-1], good.astype(np.float64), good.reshape(1, -1)):
            with pytest.raises(IntegrityError):
                exchange.receive(vector, self.config(task))
        with pytest.raises(IntegrityError, match="rest holds 4 bytes, expected 0"):
            exchange.receive(good, self.config(task, rest=b"1234"))
        with pytest.raises(IntegrityError, match="rest holds str"):
            exchange.receive(good, self.config(task, rest="1234"))

    def test_a_second_sum_is_answered_once_and_after_the_first(self, opened):
        exchange, task = opened({"rule": "flexlora", "sketch": 3}, number=2)
        rule = rule_of(task.config, task.view.layout)
        basis = np.zeros(rule.sketch.first, dtype=np.float32)
        ask = self.config(task, **{"second-sum": True, "rest": basis.tobytes()})
        with pytest.raises(IntegrityError, match="sent no first one"):
            exchange.receive(basis, ask)
        exchange.send(task.initial, {"num-examples": 5})
        vector, told = exchange.receive(basis, ask)
        assert vector.shape == (rule.sketch.second,)
        assert told == {"num-examples": 5}
        with pytest.raises(IntegrityError, match="answered already"):
            exchange.receive(basis, ask)

    def test_a_rule_of_one_sum_answers_no_second(self, opened):
        exchange, task = opened({"share": "B"})
        ask = self.config(task, **{"second-sum": True})
        with pytest.raises(IntegrityError, match="the run's rule takes one"):
            exchange.receive(np.zeros(3, dtype=np.float32), ask)
