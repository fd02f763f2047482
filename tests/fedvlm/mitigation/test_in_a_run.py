"""A mitigation by a run's configuration: what trains, who may refuse it, and when."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from fedvlm.config import Config, config_from, for_nodes, to_run_config
from fedvlm.config.mitigation import KINDS, LOSS_WEIGHTS
from fedvlm.data.unsafe import UNSAFE
from fedvlm.errors import ConfigError
from fedvlm.federation import load_task, simulate
from fedvlm.federation import task as task_module
from fedvlm.federation.answering_task import AnsweringTask
from fedvlm.federation.floor import REFUSALS, Floor, RefusedError, Terms
from fedvlm.federation.mitigated import given_by, mitigated, require_carried, require_material
from fedvlm.federation.node import Node, read_node
from fedvlm.federation.server_part import servers_config
from fedvlm.mitigation.composition import COMPOSITION
from fedvlm.mitigation.listed import MOST_CAPTIONS, read_captions
from fedvlm.mitigation.making import MAKERS, Wish, make_repair
from fedvlm.mitigation.material import Given
from fedvlm.mitigation.repairs import Anchor, Robust
from fedvlm.reporting.facts import facts_of
from fedvlm.reporting.run_page import run_page
from fedvlm.reporting.tables import summary_table
from simulations._trust_federate import federate
from simulations._trust_repairs import TRAINED, repaired_client


def _asked(kind, **more):
    return {
        "mitigate": kind,
        **({"mitigation.attribute": "domain"} if kind == "adversary" else {}),
    } | more


def _adapter(out):
    with np.load(out / "checkpoint.npz", allow_pickle=False) as kept:
        return kept["vector"].tobytes()


def test_every_kind_is_made_and_says_with_what_it_composes():
    assert set(KINDS) == set(MAKERS) | {"resample"} == set(TRAINED) | {"adversary"}
    assert set(KINDS) <= set(COMPOSITION)


def test_a_run_by_its_settings_is_that_of_the_wrapped_client_bit_for_bit(small_run, tmp_path):
    config = config_from(small_run | {"rounds": 1})
    simulate(config, out=tmp_path / "wrapped", client=repaired_client(config, "robust"))
    result = simulate(config_from({"mitigate": "robust"}, config), out=tmp_path / "asked")
    assert _adapter(tmp_path / "asked") == _adapter(tmp_path / "wrapped")
    told = json.loads((tmp_path / "asked" / "result.json").read_text())["config"]["mitigation"]
    assert (told["kind"], told["weight"]) == ("robust", 1.0)
    assert "mitigation robust" in str(summary_table(result).title)
    assert "mitigation robust" in str(run_page(facts_of(result)))


@pytest.mark.slow
@pytest.mark.parametrize("dp", ["none", "example"])
@pytest.mark.parametrize("kind", sorted(TRAINED))
def test_so_it_is_for_each_kind(small_run, tmp_path, monkeypatch, kind, dp):
    """Two threads, two rounds: what is made in whatever thread is the same."""
    made = task_module.make_splits

    def with_public(*args, **more):  # 4 concepts are public; 64 pairs are known, for a floor
        splits = made(*args, **more)
        return replace(splits, public=np.arange(12), retention=np.resize(splits.test, 64))

    monkeypatch.setattr(task_module, "make_splits", with_public)
    monkeypatch.setattr(task_module, "_shared", {})
    settings = small_run | {"rounds": 2, "workers": 2, "dp": dp, "delta": 1e-3}
    # A seed of its own: no thread has a task of it from before.
    settings |= {"simulated_noise": dp == "example", "seed": 15}
    config = config_from(settings)
    if dp == "example" and kind == "resample":
        with pytest.raises(ConfigError, match="counts twice"):
            config_from(_asked(kind), config)
        return
    federate(config, tmp_path / "none")
    federate(config, tmp_path / "wrapped", repaired_client(config, kind))
    federate(config_from(_asked(kind), config), tmp_path / "asked")
    assert _adapter(tmp_path / "asked") == _adapter(tmp_path / "wrapped")
    assert _adapter(tmp_path / "asked") != _adapter(tmp_path / "none")


def test_the_weight_is_that_of_the_term(small_run):
    task = load_task(config_from(small_run | _asked("robust", mitigation_weight=0.5)), client=0)
    assert mitigated(task, Node(0, Floor(), simulated=True)).repair == Robust(weight=0.5)
    plain = load_task(config_from(small_run), client=0)
    assert mitigated(plain, Node(0, Floor(), simulated=True)) is plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (_asked("resample", dp="example"), "counts twice"),
        (_asked("adversary", dp="example"), "couples"),
        (_asked("robust", adapter="head", rounds=1), "no loss trains"),
        ({"loss_power": 1.0, "adapter": "prototypes", "rounds": 1}, "no loss trains"),
        (_asked("robust", adapter="prompt"), "trains captions alone"),
        (_asked("adversary", adapter="prompt"), "trains captions alone"),
        (_asked("robust", device="cuda"), "computed on the CPU"),
        (_asked("robust", dtype="bfloat16"), "computed on the CPU"),
        (_asked("resample", mitigation_weight=2), "says nothing"),
        (_asked("robust", mitigation_weight=0), "above 0"),
        (_asked("robust", mitigation_weight=11), "at most 10"),
        (_asked("robust", mitigation_weight="nan"), "mitigation.weight"),
        (_asked("robust", mitigation_listed="x"), "redirect or sanitise"),
        (_asked("robust", mitigation_attribute="sex"), "nothing else needs one"),
        ({"mitigate": "adversary"}, "names the column"),
        (_asked("fairclip"), "mitigation.kind must be one of"),
        ({"loss_power": 6}, "at most 5"),
        ({"loss_power": 1, "loss": "sigmoid"}, "a guesser's"),
        ({"loss_power": 1, "dp": "example"}, "no noise covers"),
        ({"loss_power": 1, "dp": "client"}, "no noise covers"),
        ({"loss_power": 1, "dp": "distributed", "protect": "secagg"}, "no noise covers"),
    ],
)
def test_what_does_not_go_together_is_refused_by_the_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        config_from(settings)


def test_what_the_data_lack_is_refused_before_the_first_round(small_run, tmp_path):
    asked = []
    for kind in ("anchor", "redirect", "sanitise", "mixgen", "flood"):
        with pytest.raises(ConfigError, match=f"{kind} contrasts with public pairs"):
            simulate(config_from(small_run | _asked(kind)), on_event=asked.append)
    with pytest.raises(ConfigError, match='under dp = "example" a mitigation'):
        simulate(config_from(small_run | _asked("robust", dp="example")), on_event=asked.append)
    text_alone = {"targets": r"text_model\..*q_proj", "mitigate": "robust"}
    with pytest.raises(ConfigError, match="nothing that this adapter trains has a part"):
        simulate(config_from(small_run | text_alone), on_event=asked.append)
    missing = _asked("sanitise", mitigation_listed=str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="can't read the list of captions"):
        require_material(_with_public(load_task(config_from(small_run | missing))))
    assert asked == []


def _with_public(task):
    """Return a task of which the test part is public."""
    return replace(task, splits=replace(task.splits, public=task.splits.test))


def _answering(task):
    """Return a task of a model that answers, of another one's parts: none of them is looked at."""
    return AnsweringTask(**{one.name: getattr(task, one.name) for one in fields(AnsweringTask)})


def test_a_model_that_answers_carries_none(small_run):
    for settings in (_asked("robust"), {"loss_power": 1.0}):
        task = _answering(load_task(config_from(small_run | settings), client=0))
        with pytest.raises(ConfigError, match="this model answers in words"):
            require_carried(task)
    task = _answering(load_task(config_from(small_run | _asked("robust")), client=0))
    with pytest.raises(RefusedError) as stop:
        mitigated(task, Node(0, Floor()))
    assert stop.value.code == "mitigation"


def test_the_floor_names_what_a_node_trains_with():
    terms = lambda **settings: Terms.of(config_from(settings))  # noqa: E731
    for kind in KINDS[:-1]:
        assert Floor().allows(terms(mitigate=kind))
        assert not Floor(mitigations=()).allows(terms(mitigate=kind))
        assert not Floor(mitigations=(LOSS_WEIGHTS,)).allows(terms(mitigate=kind))
    assert Floor(mitigations=()).allows(terms())
    assert Floor().allows(terms(loss_power=1.0))
    assert not Floor(mitigations=KINDS).allows(terms(loss_power=1.0))
    both = terms(mitigate="robust", loss_power=1.0)
    assert not Floor(mitigations=("robust",)).allows(both)
    assert Floor(mitigations=("robust", LOSS_WEIGHTS)).allows(both)
    with pytest.raises(ConfigError, match=r"floor.mitigations takes counterfactual"):
        Floor(mitigations=("robustt",))
    with pytest.raises(RefusedError) as stop:
        Floor(mitigations=()).check(terms(mitigate="robust"))
    assert stop.value.code == "mitigation"


def test_a_column_is_read_only_where_the_floor_names_it():
    asked = Terms.of(config_from({"mitigate": "adversary", "mitigation_attribute": "sex"}))
    assert not Floor().allows(asked)
    assert not Floor(attributes=("scanner",)).allows(asked)
    assert Floor(attributes=("scanner", "sex")).allows(asked)
    with pytest.raises(RefusedError, match="reads the column 'sex'") as stop:
        Floor().check(asked)
    assert REFUSALS[stop.value.code] == 1220


@pytest.fixture
def own(tmp_path, shapes_folder, tiny_clip_folder):
    """Write a node's file; returns a function of its text."""

    def write(text=""):
        (tmp_path / "forget.txt").write_text("a red circle\n\n  a blue bar \n")
        path = tmp_path / "node.toml"
        lines = f"data = '{shapes_folder}'\nmodel = '{tiny_clip_folder}'\n"
        path.write_text(lines + text)
        path.chmod(0o600)
        return read_node(path, 0)

    return write


@pytest.mark.parametrize(
    ("text", "settings", "code"),
    [
        ("", _asked("anchor"), "mitigation"),
        ("", _asked("sanitise"), "mitigation"),
        ("", _asked("robust", dp="example"), "mitigation"),
        ("", _asked("adversary"), "mitigation"),
        ("device = 'cuda'\n", _asked("robust"), "mitigation"),
        ("[floor]\nmitigations = []\n", _asked("robust"), "mitigation"),
        ("public = 'emoji'\n", _asked("sanitise", mitigation_listed="/etc/passwd"), "data"),
    ],
)
def test_a_node_refuses_what_it_cannot_or_will_not_train_with(own, text, settings, code):
    with pytest.raises(RefusedError) as stop:
        own(text).agree(config_from(settings))
    assert stop.value.code == code


def test_no_server_makes_a_node_read_a_list(own, tmp_path, monkeypatch):
    """A path in a run config is refused by each node, read by none, and told to none."""
    target = tmp_path / "secret.txt"
    target.write_text("a secret\n")
    read = []
    monkeypatch.setattr(
        "fedvlm.federation.mitigated.read_captions", lambda path: read.append(path) or frozenset()
    )
    asked = config_from(_asked("sanitise", mitigation_listed=str(target)))
    nodes = [own("public = 'emoji'\n"), own("public = 'emoji'\nlisted = 'forget.txt'\n")]
    for node in [*nodes, Node(0, Floor())]:
        with pytest.raises(RefusedError, match="opens no file that the server chooses"):
            node.agree(asked)
        given_by(node, replace(asked, mitigation=replace(asked.mitigation, kind="redirect")))
    assert target not in read
    with pytest.raises(ConfigError, match="a node of a deployment opens none"):
        for_nodes(asked)
    assert "mitigation.listed" not in for_nodes(Config())
    assert servers_config(to_run_config(asked), None) == asked  # a simulation's is whole


def test_a_nodes_list_and_public_pairs_are_its_own(own):
    node = own("public = 'emoji'\nlisted = 'forget.txt'\n")
    node.agree(config_from(_asked("sanitise")))
    given = given_by(replace(node, public=None), config_from(_asked("sanitise")))
    assert given.listed == {"a red circle", "a blue bar"}
    assert given_by(own(), config_from(_asked("sanitise"))).listed == set(UNSAFE)
    simulated = Node(0, Floor(), simulated=True)
    assert given_by(simulated, config_from(_asked("sanitise"))).listed == set(UNSAFE)
    with pytest.raises(ConfigError, match="listed: .* isn't there"):
        own("listed = 'none.txt'\n")
    with pytest.raises(ConfigError, match="public: .* isn't there"):
        own("public = 'nowhere'\n")


def test_a_node_with_public_pairs_of_its_own_trains_with_them(own, small_run, shapes_folder):
    """Each kind that needs public pairs is made of the folder that the owner names."""
    node = own(f"public = '{shapes_folder}'\nlisted = 'forget.txt'\n")
    found = {}
    for kind in ("anchor", "sanitise", "mixgen"):
        config = config_from(small_run | _asked(kind) | {"data": "none", "model": "own"})
        node.agree(config)
        found[kind] = mitigated(node.task(config), node)
        assert np.isfinite(found[kind].train(0, 1))
    assert isinstance(found["anchor"].repair, Anchor)
    with pytest.raises(RefusedError, match="read off 64 public pairs"):
        config = config_from(small_run | _asked("flood") | {"data": "none", "model": "own"})
        mitigated(node.task(config), node)


def test_a_list_is_a_text_file_of_captions(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a dog\n a cat \n\na dog\n")
    assert read_captions(path) == {"a dog", "a cat"}
    for wrong in (
        b"",
        b"\n \n",
        b"\xff\xfe",
        b"\n".join(b"%d" % n for n in range(MOST_CAPTIONS + 1)),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ConfigError, match="list of captions|a list holds"):
            read_captions(path)


def test_what_is_made_needs_what_it_says(small_run):
    task = load_task(config_from(small_run))
    with pytest.raises(ConfigError, match="no term 'krum'"):
        make_repair(task, Wish("krum"), Given())
    with pytest.raises(ConfigError, match="has none; a node names some"):
        make_repair(task, Wish("anchor"), Given())
    public = _with_public(task)
    with pytest.raises(ConfigError, match="all public captions are listed"):
        make_repair(public, Wish("redirect"), Given(frozenset(task.data.captions)))
