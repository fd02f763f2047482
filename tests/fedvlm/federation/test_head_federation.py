"""Prototypes in a federation: one sum, by any protection, and example-level shared noise."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedvlm.config import AdapterConfig, config_from
from fedvlm.errors import BudgetExceeded, ConfigError, IntegrityError
from fedvlm.federation import Floor, InProcessGrid, RefusedError, Terms, simulate
from fedvlm.federation.client_app import VECTOR
from fedvlm.federation.head_plan import head_of, shared_mechanism
from fedvlm.federation.head_round import head_round
from fedvlm.federation.node import Node
from fedvlm.federation.node_ledger import NodeLedger
from fedvlm.federation.shared_noise import SharedNoiseStrategy
from fedvlm.federation.task import load_task
from fedvlm.heads import image_sums
from fedvlm.trained import evaluate, load_trained, predict
from simulations.two_classes import CAPTIONS
from tests.fedvlm.federation.heads_base import SHARED, two_classes


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A federation of three clients over eighty images of two classes."""
    return two_classes(tmp_path_factory.mktemp("two") / "data")


def vector(config):
    """Return the adapter that this thread's task was left with."""
    return load_task(config).view.read()


def test_a_round_is_the_sum_of_all_clients_terms_whoever_sums(base):
    plain = config_from(base)
    simulate(plain)
    summed = vector(plain)
    task = load_task(plain)
    head, rows = head_of(task), np.concatenate(task.splits.clients)
    task.model.vlm.head = None
    inputs = task.pairs.images(rows)
    features = head.features(task.model.vlm.embed(inputs, "image"), inputs)
    task.model.vlm.head = head
    names, numbers = np.unique(task.pairs.caption_of[rows], return_inverse=True)
    places = head.rows_of(task.pairs.captions(names))[numbers]
    images, share = task.pairs.groups[rows], head.prior.share
    oracle = image_sums(features, places, images, 2, share) / len(rows)
    assert np.abs(summed - oracle.reshape(-1)).max() < 1e-6
    hidden = config_from(base | {"protect": "secagg"})
    simulate(hidden)
    # Three clients' rounding, at a weight of up to 1,000, over the weights' sum.
    assert np.abs(vector(hidden) - summed).max() <= 3 * 1e-5 * 1000 / len(rows)


@pytest.mark.slow
def test_a_round_under_encryption_is_the_plain_sum(base):
    # As many rows as a head has unless asked: over a million parameters.
    base = base | {"head_rows": AdapterConfig().rows, "head_captions": ""}
    plain, hidden = config_from(base), config_from(base | {"protect": "he"})
    simulate(plain)
    summed = vector(plain)
    assert len(summed) >= 1 << 20
    simulate(hidden)
    assert np.abs(vector(hidden) - summed).max() < 1e-3


def test_shared_noise_is_in_the_ledger_of_server_and_nodes(base, tmp_path):
    config = config_from(base | SHARED)
    result = simulate(config, out=tmp_path)
    told = result.privacy or {}
    assert told["unit"] == "example"
    assert not told["simulated_noise"]
    assert 2.9 < told["epsilon"] <= 3.0
    for node in range(3):
        kept = json.loads((tmp_path / "nodes" / str(node) / "told.json").read_text())
        (event,) = kept["events"]["example"]
        assert "skellam" in json.dumps(event)
    mechanism = shared_mechanism(config, load_task(config).view.size)
    assert told["least_noised"] == mechanism.least_noised


def test_t1_the_server_pays_for_one_sum_and_asks_for_no_second():
    """One round was planned: what is asked again under shared noise is refused before it leaves."""
    config = config_from({"adapter": "prototypes", "rounds": 1, "clients": 10} | SHARED)
    inner = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1)
    strategy = SharedNoiseStrategy(inner, config, 642, 800)
    grid = InProcessGrid(lambda m, c: Message(RecordDict(), reply_to=m), 10)
    arrays = ArrayRecord({VECTOR: Array(np.zeros(642, dtype=np.float32))})
    assert len(list(strategy.configure_train(1, arrays, ConfigRecord(), grid))) == 10
    with pytest.raises(BudgetExceeded):
        strategy.configure_train(2, arrays, ConfigRecord(), grid)


def test_what_a_run_learned_is_saved_loaded_and_used(base, tmp_path):
    result = simulate(config_from(base), out=tmp_path)
    trained = load_trained(tmp_path)
    assert evaluate(trained)["test_one_of_100"] == result.rounds[-1]["test_one_of_100"]
    image = f"{base['data']}/0000.png"
    ((first, second),) = predict(trained, [image], list(CAPTIONS))
    assert first.cosine >= second.cosine
    path = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(path.read_text())
    for key, value in (("rows", 3), ("width", 1)):
        path.write_text(json.dumps(content | {key: value}))
        with pytest.raises(IntegrityError, match="shape"):
            load_trained(tmp_path)
    path.write_text(json.dumps(content | {"std": -1}))
    with pytest.raises(ConfigError, match="std"):
        load_trained(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({**SHARED, "adapter": "lora"}, "local steps"),
        ({**SHARED, "protect": "plain"}, "protect"),
        ({**SHARED, "protect": "he"}, "protect"),
        ({"dp": "distributed", "protect": "secagg"}, "noise"),
        ({"dp": "client", "adaptive": True}, "adaptive"),
        ({"dp": "none", "noise": "shared"}, 'noise = "shared" is for'),
        ({"rounds": 2}, "rounds = 1"),
        ({"server_optimizer": "fedadam"}, "fedavg"),
        ({"references": True}, "references"),
    ],
)
def test_what_no_sum_of_bounded_terms_can_meet_is_refused(change, match):
    settings = {"adapter": "prototypes", "rounds": 1} | change
    with pytest.raises(ConfigError, match=match):
        config_from(settings)


def test_a_floor_for_ones_own_noise_refuses_a_share_of_it():
    config = config_from({"adapter": "prototypes", "rounds": 1} | SHARED)
    with pytest.raises(RefusedError, match="dp = 'shared'"):
        Floor(dp=("example",)).check(Terms.of(config))
    Floor(dp=("shared",), epsilon=3.0, delta=1e-4).check(Terms.of(config))


def test_a_node_that_has_told_all_still_adds_its_share_of_noise(base):
    """Bare zeros in the place of who can't pay would leave the others' sum too little noise."""
    config = config_from(base | SHARED)
    task = load_task(config)
    ledger = NodeLedger(Node(0, Floor(rounds=1), simulated=True), RecordDict())
    mechanism = shared_mechanism(config, task.view.size)
    head_round(task, 0, 1, ledger, "1/m")
    sent, told = head_round(task, 0, 2, ledger, "1/m")
    assert told == {"num-examples": 1}
    # Over P draws the variance is estimated within √(2/P): five of those, false alarms 6e-7.
    allowed = 5 * (2 / task.view.size) ** 0.5
    assert abs(sent.var() / mechanism.local_variance - 1) < allowed


def test_colluders_of_the_whole_roster_are_left_out_of_the_plan(base):
    """S5: of a small cohort a server may pick all of a large roster's colluders."""
    few = config_from(base | SHARED | {"clients": 40, "fraction": 0.25})
    all_of_ten = config_from(base | SHARED | {"clients": 10})
    assert shared_mechanism(few, 642).least_noised < shared_mechanism(all_of_ten, 642).least_noised
