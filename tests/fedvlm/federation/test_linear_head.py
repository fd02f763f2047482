"""A linear head in a federation: rounds of clipped steps, by any protection, and their noise."""

import json
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import RecordDict

from fedvlm.adapters.linear_head import TEMPERATURE
from fedvlm.config import config_from
from fedvlm.errors import BudgetExceeded, ConfigError, IntegrityError
from fedvlm.federation import Floor, simulate
from fedvlm.federation.head_plan import head_of, own_mechanism, shared_mechanism
from fedvlm.federation.head_round import head_round, image_features, whole_sum
from fedvlm.federation.node import Node
from fedvlm.federation.node_ledger import NodeLedger
from fedvlm.federation.task import load_task
from fedvlm.heads import LinearHead, train_head
from fedvlm.trained import evaluate, load_trained, predict
from simulations.two_classes import CAPTIONS
from tests.fedvlm.federation.heads_base import OWN, SHARED, two_classes


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A federation of a linear head over eighty images of two classes."""
    return two_classes(tmp_path_factory.mktemp("two") / "data", "head") | {"rounds": 3}


def learned(config):
    """Return the map that this thread's task was left with."""
    return head_of(load_task(config)).map.detach().double().numpy()


def test_rounds_are_the_steps_of_one_party_that_holds_all(base):
    config = config_from(base)
    simulate(config)
    found, task = learned(config), load_task(config)
    head, rows = head_of(task), np.concatenate(task.splits.clients)
    captions, numbers = np.unique(task.pairs.caption_of[rows], return_inverse=True)
    task.model.vlm.head = None
    texts = task.model.vlm.embed(task.pairs.captions(captions), "text").double().numpy()
    task.model.vlm.head = head
    settings = LinearHead(3, config.adapter.rate, TEMPERATURE, config.server.momentum)
    right = head.mapped(texts)[numbers]
    features = image_features(task, rows)
    oracle = train_head(settings, features, right, head.candidates, lambda total: total)
    assert np.abs(found - oracle).max() < 1e-5 * np.abs(oracle).max()
    hidden = config_from(base | {"protect": "secagg"})
    simulate(hidden)
    # Each round's rounding: three clients', at a weight of up to 1,000, over the weights' sum,
    # times the rate and what momentum adds up; the gradient moves by less than the map does.
    allowed = config.adapter.rate * (1 + 1.9 + 2.71) * 3 * 1e-5 * 1000 / len(rows)
    assert np.abs(learned(hidden) - found).max() <= allowed


@pytest.mark.slow
def test_rounds_under_encryption_are_the_plain_rounds(base):
    plain, hidden = config_from(base), config_from(base | {"protect": "he"})
    simulate(plain)
    found = learned(plain)
    simulate(hidden)
    assert np.abs(learned(hidden) - found).max() < 0.05 * np.abs(found).max()


def test_each_round_is_in_the_ledger_of_server_and_nodes(base, tmp_path):
    config = config_from(base | SHARED)
    result = simulate(config, out=tmp_path)
    told = result.privacy or {}
    assert told["unit"] == "example"
    assert 2.9 < told["epsilon"] <= 3.0
    by_round = [entry["epsilon"] for entry in result.rounds[1:]]
    assert by_round == sorted(by_round)
    assert by_round[0] < 0.8 * by_round[-1]
    for node in range(3):
        kept = json.loads((tmp_path / "nodes" / str(node) / "told.json").read_text())
        assert kept["answers"] == 3
        assert "skellam" in json.dumps(kept["events"]["example"])


@pytest.mark.parametrize("adapter", ["prototypes", "head"])
def test_a_client_that_hides_its_images_alone_adds_all_of_the_noise(base, adapter, tmp_path):
    config = config_from(base | OWN | {"adapter": adapter, "rounds": 1})
    result = simulate(config, out=tmp_path)
    told = result.privacy or {}
    assert 2.9 < told["epsilon"] <= 3.0
    kept = json.loads((tmp_path / "nodes" / "0" / "told.json").read_text())
    assert "skellam" not in json.dumps(kept["events"]["example"])
    task = load_task(config)
    task.reset()
    ledger = NodeLedger(Node(0, Floor(), simulated=True), RecordDict())
    rows, fine = task.rows(0), 1 << 24
    exact = whole_sum(task, rows, fine, False) / fine
    sent, _ = head_round(task, 0, 1, ledger, "1/m")
    mean = len(np.concatenate(task.splits.clients)) / 3
    noise = (sent - task.initial) * mean - exact
    # Within five standard errors of the planned noise, and not of two thirds of it.
    assert abs(noise.std() / own_mechanism(config).std - 1) < 5 / np.sqrt(2 * noise.size)


def test_what_a_run_learned_is_saved_loaded_and_used(base, tmp_path):
    result = simulate(config_from(base), out=tmp_path)
    trained = load_trained(tmp_path)
    assert evaluate(trained)["test_one_of_100"] == result.rounds[-1]["test_one_of_100"]
    ((first, second),) = predict(trained, [f"{base['data']}/0000.png"], list(CAPTIONS))
    assert first.cosine >= second.cosine
    path = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"width": 1}))
    with pytest.raises(IntegrityError, match="shape"):
        load_trained(tmp_path)
    path.write_text(json.dumps(content | {"control_weight": 0}))
    with pytest.raises(ConfigError, match="control_weight"):
        load_trained(tmp_path)


def test_a_caption_that_is_not_declared_is_the_controls_whatever_was_learned(base):
    config = config_from(base)
    task = load_task(config)
    task.reset()
    model, head = task.model, head_of(task)
    inputs = model.processor.texts(["something else", *CAPTIONS])
    before = model.vlm.embed(inputs, "text")
    rng = np.random.default_rng(0)
    task.view.write(rng.normal(size=task.view.size).astype(np.float32))
    after = model.vlm.embed(inputs, "text")
    images = model.vlm.embed(task.pairs.images(np.arange(20)), "image")
    moved = (images @ after[:1].T).flatten(), (images @ before[:1].T).flatten()
    order = [one.argsort().tolist() for one in moved]
    assert order[0] == order[1]
    assert head.places_of(inputs)[0] == -1
    assert not np.allclose(images @ after[1:].T, images @ before[1:].T, atol=1e-3)


def test_a_node_that_can_not_pay_still_adds_its_share_of_noise(base):
    config = config_from(base | SHARED)
    task = load_task(config)
    ledger = NodeLedger(Node(0, Floor(rounds=1), simulated=True), RecordDict())
    mechanism = shared_mechanism(config, task.view.size)
    head_round(task, 0, 1, ledger, "1/m")
    sent, told = head_round(task, 0, 2, ledger, "1/m")
    assert told == {"num-examples": 1}
    allowed = 5 * (2 / task.view.size) ** 0.5
    assert abs(sent.var() / mechanism.local_variance - 1) < allowed


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dp": "client"}, "prototypes"),
        ({"dp": "distributed", "protect": "secagg"}, "noise"),
        ({"server_optimizer": "fedadam"}, "server_optimizer"),
        ({"references": True}, "references"),
        ({**SHARED, "protect": "plain"}, "protect"),
        ({**SHARED, "adapter": "ffa-lora"}, "local steps"),
    ],
)
def test_what_no_rounds_of_clipped_steps_can_meet_is_refused(change, match):
    with pytest.raises(ConfigError, match=match):
        config_from({"adapter": "head"} | change)


def test_without_declared_or_public_captions_there_is_nothing_to_learn_by(base):
    with pytest.raises(ConfigError, match="head_captions"):
        load_task(config_from(base | {"head_captions": ""}))


@pytest.mark.parametrize("adapter", ["prototypes", "head"])
def test_one_image_moves_a_clients_integers_by_its_bound_whatever_it_is(base, adapter):
    """Several captions, doubled rows, one caption for all, NaN, and features beyond the bound."""
    rng = np.random.default_rng(4)
    config = config_from(base | {"adapter": adapter, "rounds": 1, "clip_norm": 0.5})
    task = load_task(config)
    task.reset()
    head, bound, scale = head_of(task), 1.0 if adapter == "prototypes" else 0.5, 5000
    if adapter == "head":
        task.view.write(30 * rng.normal(size=task.view.size).astype(np.float32))
    for trial in range(6):
        rows = np.repeat(rng.permutation(task.rows(0))[:12], 1 + trial % 2)
        groups, captions = task.pairs.groups.copy(), task.pairs.caption_of.copy()
        groups[rows] = rng.integers(0, 5, len(rows))  # some images stand there with two captions
        if trial == 3:
            captions[rows] = captions[rows[0]]
        changed = replace(task, pairs=replace(task.pairs, groups=groups, caption_of=captions))
        features = rng.normal(size=(len(task.pairs.groups), head.width))
        features /= np.linalg.norm(features, axis=1, keepdims=True) * (1 + 1e-9)
        features[rows[0]] = np.nan

        def whole(kept, changed=changed, features=features):
            head.kept[kept.tobytes()] = features[kept]
            return whole_sum(changed, kept, scale, False)

        everything = whole(rows)
        for image in np.unique(groups[rows]):
            moved = (everything - whole(rows[groups[rows] != image])).astype(object)
            assert sum(int(x) ** 2 for x in moved) <= (scale * bound) ** 2
        head.kept.clear()


def test_a_nodes_own_ledger_refuses_more_rounds_than_were_planned(base):
    """A server that asks a round too many gets noise from who can't pay, and no images."""
    config = config_from(base | OWN)
    task = load_task(config)
    task.reset()
    ledger = NodeLedger(Node(0, Floor(), simulated=True), RecordDict())
    for number in range(1, config.training.rounds + 1):
        head_round(task, 0, number, ledger, f"{number}/m")
    with pytest.raises(BudgetExceeded):
        head_round(task, 0, config.training.rounds + 1, ledger, "more/m")


def test_more_clients_in_a_sum_need_less_noise_of_each(base):
    """`min_clients` is every client's own floor, so that their noise may be counted on."""
    few, all_of_them = (
        config_from(base | SHARED | {"clients": 10, "min_clients": least}) for least in (0, 10)
    )
    noises = [shared_mechanism(config, 642) for config in (few, all_of_them)]
    assert [noise.least_noised for noise in noises] == [6, 9]
    assert noises[1].local_variance < 0.7 * noises[0].local_variance
    from fedvlm.federation.terms import secure_policy

    assert secure_policy(all_of_them, 642).min_clients == 10
