"""A node that dies, is slow or comes late costs its own part, and the others lose nothing."""

import shutil

import numpy as np
import pytest

from fedvlm.federation.run import run_federation
from tests.fedvlm.federation.failing import (
    TRIPS,
    FailingGrid,
    Fault,
    mean_of,
    rounding,
    server_config,
    settings_of,
    vector_of,
    write_sites,
)

pytestmark = pytest.mark.slow

SITES = 5  # of which a sum can lose one
LOST = 1  # the node that fails, from 0


@pytest.fixture
def sites(tmp_path, shapes_folder, tiny_clip_folder):
    """Sites with keys."""
    return write_sites(tmp_path / "sites", shapes_folder, tiny_clip_folder, SITES, keys=True)


@pytest.fixture(scope="module")
def means(tmp_path_factory, shapes_folder, tiny_clip_folder):
    """The oracle: adapters after a round of all sites, and of all but one, summed in clear.

    Beside each: how far a secure sum of the same may lie from it.
    """
    place = tmp_path_factory.mktemp("means")
    nodes = write_sites(place, shapes_folder, tiny_clip_folder, SITES, keys=False)
    config = server_config(settings_of(tiny_clip_folder), clients=SITES, protect="secagg")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVLM_CACHE", str(place / "cache"))
        for count in (SITES, SITES - 1):
            kept = [nodes[k] for k in range(SITES) if count == SITES or k != LOST]
            found[count] = mean_of(kept, config, place / str(count)), rounding(kept, config)
    return found


def _after_first(grid, done):
    """Return what brings the lost node back before the second round."""
    state = {"rounds": 0}

    def before(grid):
        state["rounds"] += 1
        if grid.fault.happened and not state.get("back"):
            # Asked who is there again: the round it was lost in is over.
            state["back"] = True
            done(grid)

    return before


@pytest.mark.parametrize(
    ("protect", "trip", "before"),
    [
        *(("secagg-active", trip, True) for trip in TRIPS),
        *(("secagg-active", trip, False) for trip in TRIPS),
        *(("secagg", trip, True) for trip in TRIPS if trip != "commit"),
    ],
)
def test_a_node_killed_at_each_trip(sites, means, small_run, tmp_path, protect, trip, before):
    """The round is the sum of who stayed; the next one has everybody again, under another id."""
    nodes = sites
    config = server_config(small_run, clients=SITES, protect=protect)
    fault = Fault(LOST, trip, before)
    grid = FailingGrid(nodes, config, fault)
    vectors = []

    def on_round(entry):
        vectors.append(vector_of(tmp_path / "run", config))

    grid.before_round = _after_first(grid, lambda grid: grid.come_back(LOST, nodes[LOST], 1 << 63))
    result = run_federation(grid, config, out=tmp_path / "run", on_round=on_round)
    assert fault.happened == [trip]
    first, second = result.rounds[1:]
    # What it had masked before it died is in the sum; the others open its mask for it.
    stays = trip in ("commit", "unmask")
    assert first["abandoned"] is None
    assert first["clients"] == (SITES if stays else SITES - 1)
    assert second["clients"] == SITES
    (exact, bound), (other, _) = means[first["clients"]], means[SITES if not stays else SITES - 1]
    assert np.abs(vectors[1] - exact).max() <= bound
    # And it is not the mean of the others, or of all: the test can tell.
    assert np.abs(other - exact).max() > 4 * bound


@pytest.mark.parametrize("trip", TRIPS)
def test_a_slow_node_misses_its_trip_and_takes_part_in_the_next_round(
    sites, small_run, tmp_path, trip
):
    """It is there all the time; its answer comes after the others have gone on."""
    nodes = sites
    config = server_config(small_run, clients=SITES, protect="secagg-active")
    fault = Fault(LOST, trip, before=False, lasting=False)
    result = run_federation(FailingGrid(nodes, config, fault), config, out=tmp_path / "run")
    assert fault.happened == [trip]
    assert [entry["clients"] for entry in result.rounds[1:]] == [
        SITES if trip in ("commit", "unmask") else SITES - 1,
        SITES,
    ]


def test_a_round_with_too_few_left_is_abandoned_and_the_run_goes_on(sites, small_run, tmp_path):
    nodes = sites
    config = server_config(small_run, clients=SITES, protect="secagg-active")
    fault = Fault(LOST, "mask")
    grid = FailingGrid(nodes, config, fault)
    grid.die(2)
    lost_too = []

    def before(grid):
        if fault.happened and not lost_too:
            lost_too.append(True)
            grid.come_back(LOST, nodes[LOST])
            grid.come_back(2, nodes[2])

    grid.before_round = before
    quick = server_config(small_run, clients=SITES, protect="secagg-active", join_timeout=0.3)
    result = run_federation(grid, quick, out=tmp_path / "run")
    first, second = result.rounds[1:]
    assert first["abandoned"]
    assert second["clients"] == SITES
    assert second["abandoned"] is None


def test_a_node_that_joins_late(sites, small_run, tmp_path):
    nodes = sites
    config = server_config(small_run, clients=SITES, protect="secagg-active", join_timeout=0.3)
    grid = FailingGrid(nodes, config)
    grid.die(LOST)
    asked = []

    def before(grid):
        asked.append(1)
        if vector_exists(tmp_path / "run") and len(grid.contexts) == SITES - 1 and rounds_done:
            grid.come_back(LOST, nodes[LOST])

    rounds_done = []
    grid.before_round = before
    result = run_federation(
        grid,
        config,
        out=tmp_path / "run",
        on_round=lambda entry: rounds_done.append(entry["round"]) if entry["round"] else None,
    )
    assert [entry["clients"] for entry in result.rounds[1:]] == [SITES - 1, SITES]


def vector_exists(out):
    return (out / "checkpoint.npz").exists()


def test_a_node_that_comes_back_under_another_number_is_no_second_one(
    sites, small_run, tmp_path, caplog
):
    """Its owner wrote another node's number: it takes no part while that one is there."""
    nodes = sites
    config = server_config(small_run, clients=SITES, protect="secagg-active")
    fault = Fault(LOST, "share")
    grid = FailingGrid(nodes, config, fault)
    moved = tmp_path / "sites" / "moved"
    shutil.copytree(nodes[LOST], moved)
    text = (moved / "node.toml").read_text()
    (moved / "node.toml").write_text(text.replace(f"number = {LOST}", "number = 2"))
    grid.before_round = _after_first(grid, lambda grid: grid.come_back(LOST, moved, 77))
    result = run_federation(grid, config, out=tmp_path / "run")
    assert [entry["clients"] for entry in result.rounds[1:]] == [SITES - 1, SITES - 1]
    assert "says it is client 3, which another node has too" in caplog.text


def test_what_a_dead_node_had_counted_is_never_lower(sites, small_run, tmp_path):
    """It counts before it answers: an answer that was lost is one that was given."""
    from fedvlm.federation.node import read_node
    from fedvlm.federation.node_ledger import FILE

    nodes = sites
    config = server_config(small_run, clients=SITES, protect="secagg-active")
    fault = Fault(LOST, "advertise", before=False)
    grid = FailingGrid(nodes, config, fault)
    grid.before_round = _after_first(grid, lambda grid: grid.come_back(LOST, nodes[LOST]))
    run_federation(grid, config, out=tmp_path / "run")
    import json

    told = [json.loads((node / "state" / FILE).read_text())["answers"] for node in nodes]
    assert told == [2] * SITES
    assert read_node(nodes[LOST] / "node.toml").state == nodes[LOST] / "state"


def test_two_nodes_with_one_identity_are_one_voice_at_most(sites, small_run, tmp_path):
    """A copied key under another number: whoever holds it must not count twice in a sum."""
    nodes = sites
    path = nodes[LOST] / "node.toml"
    path.write_text(path.read_text().replace(f"keys/{LOST}.key", "keys/0.key"))
    config = server_config(small_run, clients=SITES, protect="secagg-active", rounds=1)
    grid = FailingGrid(nodes, config)
    result = run_federation(grid, config, out=tmp_path / "run")
    assert result.rounds[1]["clients"] == SITES - 1
    assert result.rounds[1]["abandoned"] is None
