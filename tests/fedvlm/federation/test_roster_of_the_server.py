"""The server knows who may sign: a wrong signature costs its sender the round, and nobody else."""

import json
from pathlib import Path

import pytest

from fedvlm.config import Config, config_from
from fedvlm.errors import ConfigError
from fedvlm.federation import simulate
from fedvlm.federation.client_app import app
from fedvlm.federation.server_part import ROSTER, servers_roster, write_server_part
from secure.aggregation import Identity, Roster, save_identity
from secure.random import SecureRandom

SECURE = config_from({"protect": "secagg-active", "clients": 4})


def test_one_who_signs_with_a_key_of_its_own_is_left_out_and_the_round_goes_on(small_run, tmp_path):
    stranger = Identity.generate(SecureRandom())
    save_identity(stranger, tmp_path / "stranger.key")
    told = tmp_path / "roster.json"  # its own, which names its own key: it sees nothing wrong

    def client(message, context):
        if context.node_config["partition-id"] == 1:
            if not told.exists():
                keys = Roster.load(Path(context.node_config["secagg-roster"])).keys
                Roster({**keys, 2: stranger.public_key}).save(told)
            context.node_config["secagg-identity"] = str(tmp_path / "stranger.key")
            context.node_config["secagg-roster"] = str(told)
        return app(message, context)

    config = config_from(small_run | {"clients": 5, "rounds": 1, "protect": "secagg-active"})
    result = simulate(config, client=client, out=tmp_path / "run")
    assert not result.rounds[1].get("abandoned")
    assert result.rounds[1]["clients"] == 4


def test_the_server_reads_the_roster_beside_its_part(tmp_path):
    roster = Roster({n: Identity.generate(SecureRandom()).public_key for n in range(1, 5)})
    roster.save(tmp_path / "own.json")
    write_server_part(SECURE, tmp_path / "run", tmp_path / "own.json")
    found = servers_roster(SECURE, tmp_path / "run")
    assert found is not None
    assert found.keys == roster.keys
    assert servers_roster(Config(), tmp_path / "run") is None
    assert servers_roster(SECURE, None) is None
    assert servers_roster(SECURE, tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"1": "no key"})])
def test_what_is_no_roster_is_refused_in_one_line(tmp_path, text):
    (tmp_path / ROSTER).write_text(text)
    with pytest.raises(ConfigError, match="is no roster"):
        servers_roster(SECURE, tmp_path)
