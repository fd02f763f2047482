"""Rows and what they make of a configuration: allowed, or refused with the library's reason."""

import itertools
from pathlib import Path

import pytest

from fedvlm.compare.columns import GROUPS, columns_of
from fedvlm.compare.rows import ROWS, chosen, kind_of
from fedvlm.compare.spec import Spec, parse_seeds, read_spec
from fedvlm.config import Config, config_from
from fedvlm.config.adapter import KINDS
from fedvlm.errors import ConfigError

ROOT = Path(__file__).parents[3]
HEADS = ("prototypes", "head")
TRAINED = tuple(kind for kind in KINDS if kind not in HEADS)


def refused(row, adapter):
    """What can't be, by what a mechanism needs: written down apart from the code."""
    kind = kind_of(row)
    if kind == "shared":  # bounded terms, whose noise can be shared
        return adapter in TRAINED
    if kind == "distributed":  # whole clients' updates
        return adapter in HEADS
    return kind == "client" and adapter == "head"  # released in each of its rounds


@pytest.mark.parametrize(("row", "adapter"), list(itertools.product(ROWS, KINDS)))
def test_a_combination_is_a_run_or_refused_with_its_reason(row, adapter):
    spec = Spec(Config())
    if refused(row, adapter):
        with pytest.raises(ConfigError, match="use"):
            spec.config(row, adapter, 0)
        return
    config = spec.config(row, adapter, 7)
    assert (config.adapter.kind, config.training.seed) == (adapter, 7)
    assert config.privacy.dp == {"own": "example", "shared": "example"}.get(
        kind_of(row), kind_of(row) if kind_of(row) in ("client", "distributed") else "none"
    )
    assert (config.data.membership, config.audit.transcript) == ("half", True)


def test_nothing_of_the_bases_own_protection_is_left_in_a_row():
    base = config_from({"protect": "secagg", "dp": "distributed", "epsilon": 2.0, "delta": 1e-3})
    plain = Spec(base).config("none", "lora", 0)
    assert (plain.protection.protect, plain.privacy.dp) == ("plain", "none")
    private = Spec(base).config("own-3", "lora", 0)
    assert (private.privacy.epsilon, private.privacy.delta) == (3.0, 1e-3)


def test_runs_are_attackable_only_where_attacks_are_asked_for():
    config = Spec(Config(), groups=("utility", "cost")).config("none", "lora", 0)
    assert (config.data.membership, config.audit.transcript) == ("all", False)


def test_names_are_chosen_in_the_tables_order_and_a_wrong_one_is_named():
    assert chosen(["own", "secagg"], ROWS, "row") == ("secagg", "own-8", "own-3", "own-1")
    assert chosen([], ROWS, "row") == tuple(ROWS)
    with pytest.raises(ConfigError, match="did you mean 'secagg'"):
        chosen(["secag"], ROWS, "row")


@pytest.mark.parametrize("text", ["", "1,1", "-1", "a", "0,,1", "1.5"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="seeds are different whole numbers"):
        parse_seeds(text)


def test_the_file_and_the_command_line_say_what_to_compare(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "[training]\nrounds = 9\n"
        '[compare]\nadapters = ["prompt", "lora"]\nrows = ["none", "own"]\nseeds = [3, 4]\n'
        '[compare.settings.own]\nlearning_rate = 1e-3\n[compare.settings."own-8/lora"]\n'
        "learning_rate = 2e-3\n"
    )
    spec = read_spec(path)
    assert spec.rows == ("none", "own-8", "own-3", "own-1")
    assert (spec.adapters, spec.seeds) == (("lora", "prompt"), (3, 4))
    rates = [
        spec.config(row, adapter, 3).training.learning_rate
        for row, adapter in (("own-8", "lora"), ("own-3", "lora"), ("own-8", "prompt"))
    ]
    assert rates == [2e-3, 1e-3, 1e-3]
    quick = read_spec(path, rows="none", columns="utility", quick=True)
    assert quick.rows == ("none",)
    assert (quick.groups, quick.seeds, quick.quick) == (("utility",), (3,), True)
    assert quick.config("none", "lora", 3).training.rounds == quick.effort.rounds
    assert quick.options == ("--quick", "--rows", "none", "--columns", "utility")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[compare]\nrow = []\n", "no key 'row'"),
        ('[compare]\nrows = "none"\n', "takes a list of names"),
        ("[compare.settings.own]\nlearnin_rate = 1\n", "unknown configuration key"),
        ("[compare.settings.others]\nrounds = 1\n", "names 'others'"),
        ("[trainin]\nrounds = 1\n", "unknown table"),
        ("[compare\n", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(tmp_path, text, told):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_spec(path)


def test_the_comparison_that_comes_along_can_be_read():
    spec = read_spec(ROOT / "simulations" / "configs" / "compare.toml")
    assert spec.rows == tuple(ROWS)
    assert spec.base.privacy.simulated_noise  # repeatable: a fresh cell equals the kept one


def test_columns_have_keys_of_their_own():
    keys = [column.key for column in columns_of(tuple(GROUPS))]
    assert len(set(keys)) == len(keys)
    assert {"accuracy", "gain_kept", "auc_V1", "tpr_V5", "epsilon_audited", "client_s"} < set(keys)
