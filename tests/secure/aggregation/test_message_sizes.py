"""No message's size depends on what a client's vector, weight or metrics are."""

from contextlib import suppress

import pytest
from flwr.serverapp import strategy as flower

from secure.aggregation import Policy, plan
from secure.aggregation._provision import provision
from secure.aggregation.flower import SecAggStrategy, secagg_mod
from secure.errors import PeerError
from secure.flower._sizes import content_bytes
from tests.secure.aggregation.local_grid import LocalGrid
from tests.secure.aggregation.plain_app import initial, make_app

NODES = 4
SCALES = [0.0, 1e-30, 0.01, 300.0, float("nan")]


def sizes(strategy, mod, scale: float) -> list[tuple[int, int]]:
    """Return (node, bytes) of each answer of a round, by node."""
    grid = LocalGrid(make_app([mod], scale=scale), NODES)
    with suppress(PeerError):
        strategy.start(grid, initial(), num_rounds=1)
    assert not any(each.has_error() for each in grid.answers)
    # The inner strategy draws its nodes in any order.
    return sorted((each.metadata.src_node_id, content_bytes(each.content)) for each in grid.answers)


@pytest.mark.parametrize("mode", ["semi-honest", "active"])
def test_under_secure_aggregation(tmp_path, mode):
    """Zeros, an update that is scaled down, one that can't be used: sizes tell none of it."""
    provision(tmp_path, NODES)
    policy = Policy(plan(NODES, clip_norm=1.0, error=1e-4), mode=mode, corrupt=0.0)
    inner = {"min_train_nodes": NODES, "min_available_nodes": NODES, "fraction_evaluate": 0.0}
    found = [
        sizes(SecAggStrategy(flower.FedAvg(**inner), policy), secagg_mod(policy, tmp_path), scale)
        for scale in SCALES
    ]
    assert len(found[0]) == NODES * (5 if mode == "active" else 4)
    assert all(each == found[0] for each in found)


def test_under_encryption(tmp_path):
    pytest.importorskip("tenseal")
    from secure.he.flower import HESumStrategy, he_mod
    from secure.he.policy import HEPolicy, provision_key

    policy = HEPolicy(clients=NODES, bound=1.0, rounds=1)
    provision_key(tmp_path / "he.key", policy)
    inner = {"min_train_nodes": NODES, "min_available_nodes": NODES, "fraction_evaluate": 0.0}
    found = [
        sizes(
            HESumStrategy(flower.FedAvg(**inner), policy),
            he_mod(policy, tmp_path / "he.key"),
            scale,
        )
        for scale in SCALES
    ]
    assert len(found[0]) == NODES + 1
    assert all(each == found[0] for each in found)
