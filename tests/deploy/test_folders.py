"""Folders of a federation: whole, private, and holding nothing of another's secrets."""

import json
import ssl
import stat
import subprocess
import tomllib

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.common.config import flatten_dict

from fedvlm.config import Config, for_nodes, load_config
from fedvlm.config.flower import PLACES
from fedvlm.deploy.bundle import app_files, app_hash
from fedvlm.deploy.folders import Public, Terms
from fedvlm.deploy.setup import init, join, settle
from fedvlm.errors import ConfigError
from fedvlm.federation.node import read_node
from secure.aggregation import Roster, load_identity

WEIGHTS = "ab" * 32


def terms(**changes):
    return Terms(
        **{
            "host": "fl.example.org",
            "port": 8443,
            "clients": 3,
            "protect": "secagg-active",
            "model": "embedded",
            "weights": WEIGHTS,
        }
        | changes
    )


@pytest.fixture
def federation(tmp_path):
    init(tmp_path / "fed", terms())
    return tmp_path / "fed"


def test_a_folder_holds_nothing_of_anothers_secrets(federation):
    secrets = {p: p.read_bytes() for p in federation.rglob("*.key")}
    assert len(secrets) == 3 * 3 + 2
    assert len(set(secrets.values())) == len(secrets)
    for path, secret in secrets.items():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        party = federation / path.relative_to(federation).parts[0]
        assert stat.S_IMODE(party.stat().st_mode) == 0o700
        body = b"".join(secret.split(b"\n")[1:-2]) or secret.strip()
        for other in (p for p in federation.rglob("*") if p.is_file() and p != path):
            text = other.read_bytes()
            assert secret.strip() not in text
            assert body not in text.replace(b"\n", b"")


def test_a_nodes_file_is_read_and_fits_its_roster(federation):
    for number in (1, 2, 3):
        folder = federation / f"node-{number}"
        node = read_node(folder / "node.toml")
        assert node.number == number - 1
        assert node.floor.protect == "secagg-active"
        assert node.floor.model == WEIGHTS
        assert node.floor.min_clients == 3
        roster = Roster.load(node.roster)
        assert roster.keys[number] == load_identity(node.identity).public_key
        key = load_ssh_private_key((folder / "keys" / "supernode.key").read_bytes(), None)
        public = (federation / "server" / "nodes" / f"node-{number}.pub").read_bytes()
        assert load_ssh_public_key(public).public_numbers() == key.public_key().public_numbers()


def test_the_servers_folder_needs_no_data(federation):
    server = federation / "server"
    config = load_config(server / "run.toml")
    assert (config.data.source, config.protection.protect, config.data.clients) == (
        "none",
        "secagg-active",
        3,
    )
    project = tomllib.loads((server / "app" / "pyproject.toml").read_text())
    settings = project["tool"]["flwr"]["app"]["config"]
    assert flatten_dict(settings) == PLACES | for_nodes(Config())
    assert len(app_hash()) == 64
    assert app_files() == app_files()


def test_certificates_are_for_the_host_and_for_nobody_else(federation):
    context = ssl.create_default_context(cafile=str(federation / "node-1" / "tls" / "ca.crt"))
    assert context.cert_store_stats()["x509_ca"] == 1
    tls = federation / "server" / "tls"
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls / "server.crt", tls / "server.key")
    from cryptography import x509

    found = x509.load_pem_x509_certificate((tls / "server.crt").read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    found.verify_directly_issued_by(x509.load_pem_x509_certificate((tls / "ca.crt").read_bytes()))


def test_scripts_are_shell_and_name_their_variables(federation):
    for script, variables in (
        (federation / "server" / "start-server.sh", ("HOST", "PORT", "FEDVLM_PYTHON")),
        (federation / "node-2" / "start-node.sh", ("SUPERLINK", "NODE_PORT", "MAX_WAIT")),
    ):
        subprocess.run(["sh", "-n", str(script)], check=True, timeout=10)
        text = script.read_text()
        assert all(f"#   {each}" in text for each in variables)
        for quiet in (
            "FLWR_TELEMETRY_ENABLED=0",
            "HF_HUB_OFFLINE=1",
            "FLWR_HOME=",
            "INSTALLATION=1",
        ):
            assert quiet in text
        assert "{" not in text.replace("${", "")
    for name in ("server", "node-1"):
        assert "{" not in (federation / name / "README.md").read_text()


def test_sites_make_their_own_keys(tmp_path, monkeypatch):
    monkeypatch.setattr("fedvlm.deploy.setup.weights_of", lambda model: WEIGHTS)
    public = []
    for number in (1, 2, 3):
        join(tmp_path / f"site-{number}", number)
        public.append(Public.load(tmp_path / f"site-{number}" / "public.json"))
    roster = init(tmp_path / "fed", terms(), public)
    assert not list((tmp_path / "fed").glob("node-*/**/*.key"))
    assert settle(tmp_path / "site-2", tmp_path / "fed" / "node-2").keys == roster.keys
    node = read_node_with_data(tmp_path / "site-2")
    assert (node.number, node.floor.protect) == (1, "secagg-active")
    assert "THIS IS A REHEARSAL" not in (tmp_path / "site-2" / "README.md").read_text()


def read_node_with_data(folder):
    return read_node(folder / "node.toml")


def test_a_welcome_that_is_not_the_sites_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fedvlm.deploy.setup.weights_of", lambda model: WEIGHTS)
    public = [join(tmp_path / f"site-{n}", n) for n in (1, 2, 3)]
    init(tmp_path / "fed", terms(), public)
    site = tmp_path / "site-1"
    with pytest.raises(ConfigError, match="not for this site"):
        settle(site, tmp_path / "fed" / "node-2")
    with pytest.raises(ConfigError, match="is no welcome"):
        settle(site, tmp_path)
    path = tmp_path / "fed" / "node-1" / "welcome.json"
    good = json.loads(path.read_text())
    for changes, message in (
        ({"server": 'x:1"; rm -rf /tmp/x; "'}, "no server as host:port"),
        ({"server": "$(id):80"}, "no server as host:port"),
        ({"clients": 9}, "names 9 nodes, its roster 3"),
        ({"weights": "cd" * 32}, "is not the federation's"),
    ):
        path.write_text(json.dumps(good | changes))
        with pytest.raises(ConfigError, match="no welcome|" + message):
            settle(site, tmp_path / "fed" / "node-1")
    assert not (site / "node.toml").exists()
    # What a welcome says of protection lowers nothing.
    path.write_text(json.dumps(good | {"protect": "plain"}))
    settle(site, tmp_path / "fed" / "node-1")
    assert read_node(site / "node.toml").floor.protect == "secagg-active"


def test_a_common_key_goes_to_the_nodes_and_never_to_the_server(tmp_path):
    pytest.importorskip("tenseal")
    init(tmp_path / "fed", terms(protect="he"))
    keys = [tmp_path / "fed" / f"node-{n}" / "keys" / "he.key" for n in (1, 2, 3)]
    assert len({path.read_bytes() for path in keys}) == 1
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in keys)
    assert not list((tmp_path / "fed" / "server").rglob("he.key"))
    assert read_node(tmp_path / "fed" / "node-3" / "node.toml").floor.protect == "he"


SERVICE = {
    "image": str,
    "command": list,
    "restart": str,
    "read_only": bool,
    "tmpfs": list,
    "cap_drop": list,
    "security_opt": list,
    "volumes": list,
    "environment": dict,
    "ports": list,
}
"""Of the Compose specification, what these files use, with the type that it asks for."""


@pytest.mark.parametrize("party", ["server", "node-1"])
def test_a_compose_file_is_one(tmp_path, party):
    import yaml

    init(tmp_path / "fed", terms(port=8443))
    found = yaml.safe_load((tmp_path / "fed" / party / "compose.yaml").read_text())
    assert set(found) == {"services"}
    ((name, service),) = found["services"].items()
    assert name == party.partition("-")[0]
    for key, value in service.items():
        assert isinstance(value, SERVICE[key]), key
    assert service["image"].startswith("${FEDVLM_IMAGE:?")
    script = service["command"][-1].removeprefix("/party/")
    assert (tmp_path / "fed" / party / script).exists()
    assert service["restart"] == "unless-stopped"
    assert service["volumes"] == ["./:/party"]
    assert ("ports" in service) == (party == "server")  # nobody calls a node
    assert service.get("ports", ["8443:8443"]) == ["8443:8443"]


@pytest.mark.parametrize("protect", ["he", "secagg-active"])
def test_the_run_that_is_written_is_one_that_can_be_run(tmp_path, protect):
    init(tmp_path / "fed", terms(protect=protect))
    config = load_config(tmp_path / "fed" / "server" / "run.toml")
    assert config.protection.protect == protect
    assert config.server.node_scores == ("none" if protect == "he" else "last")


def test_the_servers_port_is_open_to_this_machine_alone_until_asked(federation, tmp_path):
    """Whoever reaches the port can start runs: nobody but this machine does by default."""
    fake = tmp_path / "bin" / "flower-superlink"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "{fake.parent}"\n')
    for script in (fake, python):
        script.chmod(0o755)

    def started(**more: str) -> list[str]:
        done = subprocess.run(
            ["sh", str(federation / "server" / "start-server.sh")],
            env={"PATH": "/usr/bin:/bin", "FEDVLM_PYTHON": str(python), **more},
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout.splitlines()

    told = started()
    assert told[told.index("--host") + 1] == "127.0.0.1"
    assert "--enable-supernode-auth" in told
    asked = started(HOST="0.0.0.0")
    assert asked[asked.index("--host") + 1] == "0.0.0.0"
    readme = " ".join((federation / "server" / "README.md").read_text().split())
    assert "start runs and register nodes" in readme
