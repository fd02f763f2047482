"""What a node brings to a protected sum is its own: keys, terms and folder (S1, S4)."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedvlm.config import config_from, to_run_config
from fedvlm.errors import ConfigError, DataError
from fedvlm.federation import simulate
from fedvlm.federation.answering import client_policy, he_node, sum_node
from fedvlm.federation.floor import Floor, Terms
from fedvlm.federation.node import Node, node_of
from fedvlm.federation.terms import secure_policy
from secure.aggregation import load_identity, provision
from secure.errors import PolicyError
from secure.flower import KeysError

SECURE = config_from({"clients": 5, "protect": "secagg-active"})


def _context(config=SECURE, **run_config):
    return Context(3, 7, {"partition-id": 1}, RecordDict(), to_run_config(config) | run_config)


@pytest.fixture
def node(tmp_path):
    provision(tmp_path / "keys", 5)
    provision(tmp_path / "theirs", 5)
    return Node(
        1,
        Floor(protect="secagg"),
        data=tmp_path,
        state=tmp_path / "state",
        identity=tmp_path / "keys" / "1.key",
        roster=tmp_path / "keys" / "roster.json",
        he_key=tmp_path / "he.key",
    )


def test_keys_roster_and_folder_are_the_node_s_own(node, tmp_path):
    """S1: nothing is written where a message's context is read, and no run config names a key."""
    context = _context(identities=str(tmp_path / "theirs"))
    before = dict(context.node_config)
    mine = sum_node(node, SECURE, context)
    assert mine.identity.public_key == load_identity(tmp_path / "keys" / "1.key").public_key
    assert mine.state == node.state
    assert mine.policy == secure_policy(SECURE)
    encrypted = he_node(node, config_from({"protect": "he"}, SECURE), context)
    assert (encrypted.key, encrypted.state) == (node.he_key, node.state)
    assert context.node_config == before


def test_a_simulated_node_keeps_no_record_that_would_refuse_a_resumed_round(node, tmp_path):
    simulated = replace(node, simulated=True, identity=None, roster=None, he_key=None)
    context = _context(identities=str(tmp_path / "theirs"))
    given = sum_node(simulated, SECURE, context)
    assert given.identity.public_key == load_identity(tmp_path / "theirs" / "1.key").public_key
    assert given.state is None
    encrypted = he_node(simulated, config_from({"protect": "he"}, SECURE), context)
    assert encrypted.key.parent == tmp_path / "theirs"
    assert encrypted.state is None


@pytest.mark.parametrize("field", ["identity", "roster"])
def test_a_node_without_keys_says_which(node, field):
    for wrong in (None, Path("/nowhere")):
        with pytest.raises(KeysError):
            sum_node(replace(node, **{field: wrong}), SECURE, _context())
    with pytest.raises(KeysError):
        he_node(replace(node, he_key=None), SECURE, _context())


def test_the_floor_s_fewest_clients_hold_for_the_sum(node):
    """S1: a sum of fewer than the owner asks for is refused, whatever the run's terms allow."""
    proposed = secure_policy(SECURE)
    assert proposed.fewest == 4
    strict = replace(node, floor=Floor(min_clients=5))
    floor = client_policy(SECURE, _context(), strict)
    assert floor.fewest == 5
    with pytest.raises(PolicyError, match="min_clients is 4, below this client's 5"):
        floor.check(proposed)
    floor.check(secure_policy(config_from({"min_clients": 5}, SECURE)))
    # A floor never lowers what the run promises.
    low = replace(node, floor=Floor(min_clients=1))
    assert client_policy(SECURE, _context(), low) == proposed


@pytest.mark.parametrize("protect", ["plain", "he"])
def test_a_stated_cohort_is_believed_where_no_sum_holds_it(node, protect):
    """A known limit: a server says "a hundred", asks one, and a floor of 50 can't tell."""
    config = config_from({"clients": 100, "protect": protect})
    floor = Floor(min_clients=50, protect=protect)
    assert floor.allows(Terms.of(config))
    assert not floor.allows(Terms.of(config_from({"clients": 49}, config)))
    encrypted = he_node(
        replace(node, floor=floor), config_from({"protect": "he"}, config), _context()
    )
    assert encrypted.policy.quorum == 3


@pytest.mark.parametrize("protect", ["secagg", "secagg-active"])
def test_three_honest_clients_are_in_every_sum_of_any_federation(protect):
    """S5: also in the smallest cohort that the terms allow, whose quorum holds two of them."""
    met = 0
    for clients in (*range(3, 13), 19, 20, 34, 79):
        for cohort in range(3, clients + 1):
            config = config_from(
                {"clients": clients, "protect": protect, "fraction": cohort / clients}
            )
            try:
                policy = secure_policy(config)
            except ConfigError:
                continue
            met += 1
            least = max(policy.fewest, policy.sharing(config.cohort).quorum)
            assert least - policy.corrupt_members(config.cohort) >= 3, (clients, cohort)
    assert met > 100


@pytest.mark.parametrize("clients", [3, 10, 34, 100, 1000])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_corrupt_members_are_counted_against_the_roster(clients, fraction):
    config = config_from({"clients": clients, "protect": "secagg", "fraction": fraction})
    if config.cohort < 3:
        return
    policy = secure_policy(config)
    assert policy.roster == clients
    assert policy.corrupt_members(config.cohort) == clients // 10
    assert 2 * policy.fewest > config.cohort + clients // 10
    assert policy.plan.bytes_per_parameter <= 4
    uniform = secure_policy(config_from({"dp": "example"}, config))
    assert uniform.max_weight == 1
    assert uniform.plan.bytes_per_parameter <= (2.7 if clients <= 100 else 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": 100, "fraction": 0.1}, "no sum of 10 of 100 clients is safe.*raise fraction"),
        ({"min_clients": 6}, "min_clients is 6, and a round asks 5"),
    ],
)
def test_terms_that_no_round_can_meet_are_refused_before_one(change, message):
    with pytest.raises(ConfigError, match=message):
        secure_policy(config_from(change, SECURE))


def test_nodes_of_the_grid_find_the_keys_that_they_were_given(tmp_path):
    given = {"simulated": True, "secagg-identity": "a", "secagg-roster": "b", "he-key": "c"}
    node = node_of(Context(1, 7, given, RecordDict(), {}))
    assert (str(node.identity), str(node.roster), str(node.he_key)) == ("a", "b", "c")


def test_a_round_tells_how_many_updates_could_not_be_used(small_run, tmp_path):
    """What the sum counts of its clients stands in the round's entry."""
    result = simulate(config_from(small_run | {"rounds": 1, "protect": "secagg"}))
    entry = result.rounds[1]
    assert entry["refused"] == {}
    assert (entry["updates_scaled_down"], entry["updates_unusable"]) == (0, 0)


def test_an_unwritable_folder_is_refused_before_anything_is_computed(small_run, tmp_path):
    (tmp_path / "file").write_text("")
    computed = []
    with pytest.raises(DataError, match="can't write .*file is a file"):
        simulate(
            config_from(small_run),
            out=tmp_path / "file" / "run",
            progress=lambda *told: computed.append(told),
        )
    assert not computed


def test_flower_s_logger_is_as_it_was(small_run):
    level = logging.getLogger("flwr").level
    simulate(config_from(small_run | {"rounds": 1}))
    assert logging.getLogger("flwr").level == level


@pytest.mark.parametrize("protect", ["secagg", "he"])
def test_rounds_that_a_resumed_run_repeats_are_answered(small_run, tmp_path, protect):
    settings = small_run | {"rounds": 1, "protect": protect}
    simulate(config_from(settings), out=tmp_path)
    result = simulate(config_from(settings | {"rounds": 2}), out=tmp_path, resume=True)
    assert [entry.get("abandoned") for entry in result.rounds[1:]] == [None, None]
