"""A run's page: what it says, what it never says, and that it needs nobody else to be read."""

import base64
import hashlib
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fedvlm
from fedvlm.federation.result import Result
from fedvlm.reporting.facts import facts_of
from fedvlm.reporting.pages import report_of
from fedvlm.reporting.render import render
from fedvlm.reporting.run_page import run_page
from fedvlm.reporting.seeds import ROWS
from fedvlm.reporting.unprotected import unprotected
from fedvlm.reporting.verdict import verdict
from tests.fedvlm.reporting.samples import Parsed, audit_of, folder_of, result

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">\'"&</style>'


def page_of(found: Result) -> str:
    return render(run_page(facts_of(found)))


def words(text: str) -> str:
    return text.replace("\u202f", " ").replace("\u00a0", " ")


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    found = result()
    return folder_of(tmp_path_factory.mktemp("runs") / "run", found, audit_of(found))


@pytest.fixture(scope="module")
def page(audited):
    return report_of(audited).read_text()


def test_u6_an_audited_run_is_a_page_for_people(page):
    """U6: the page was 80,000 px of raw dictionaries, with numbers such as 5.233e+04."""
    parsed = Parsed(page)
    assert "{'" not in parsed.text
    assert '{"' not in parsed.text
    assert not re.search(r"\d[eE][+-]?\d\d", parsed.text)  # U12
    assert not re.search(r"\d\.\d{5}", parsed.text)
    assert len(page) < 250_000
    for told in ("server that sees single updates", "Before training", "gradient-inversion"):
        assert told in parsed.text


def test_the_page_needs_nobody_else(page):
    parsed = Parsed(page)
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "@import" not in page
    assert "url(" not in page
    kept = {"data:,"}
    links = {v for _, name, v in parsed.attributes if name in ("src", "href", "srcset", "action")}
    assert links <= kept
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert not [name for _, name, _ in parsed.attributes if name == "style"]


def test_its_policy_lets_in_its_own_script_and_style_alone(page):
    policy = next(v for _, name, v in Parsed(page).attributes if "default-src" in v)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind, name in (("style", "style-src"), ("script", "script-src")):
        inside = re.findall(f"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        assert len(inside) == 1
        hashed = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{name} 'sha256-{hashed}'" in policy


def hostile(value, text):
    """Put a text wherever a value of a result is text, or a name."""
    if isinstance(value, dict):
        return {
            (f"domain_{text}" if str(k).startswith("domain_noto") else k): hostile(v, text)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [hostile(v, text) for v in value]
    return text if isinstance(value, str) else value


def test_text_of_a_file_stays_text(tmp_path):
    found = result()
    audit = audit_of(found)
    folder = folder_of(tmp_path, found, audit)
    for name in ("result.json", "audit.json", "trust.json"):
        told = json.loads((folder / name).read_text())
        vantages = [row["vantage"] for row in told.get("rows", told.get("leakage", []))]
        told = hostile(told, HOSTILE)
        for rows in (told.get("rows"), told.get("leakage")):
            for row, vantage in zip(rows or [], vantages, strict=False):
                row["vantage"] = vantage
        if name == "result.json":
            told["data"]["metric"] = "one_of_100"
        if "identity" in told and name == "trust.json":
            told["identity"] = {}
        (folder / name).write_text(json.dumps(told))
    page = report_of(folder).read_text()
    parsed = Parsed(page)
    assert parsed.scripts == 1
    assert not [v for tag, _, v in parsed.attributes if tag == "img"]
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.text.count("alert(1)") > 20  # it is there, as text


@settings(max_examples=12, deadline=None)
@given(text=st.text(min_size=1, max_size=40))
def test_no_text_changes_what_the_page_is(text):
    found = replace(
        result(),
        data={"name": text, "pairs": 3, "fingerprint": text},
        adapter={"kind": text, "parameters": 3},
        versions={text: text},
        protection={"name": text, "parameters": {"mode": text, "clip": text}},
    )
    assert Parsed(page_of(found)).scripts == 1


NUMBERS = st.one_of(
    st.none(), st.floats(), st.integers(-(10**30), 10**30), st.booleans(), st.text(max_size=3)
)


@settings(max_examples=15, deadline=None)
@given(numbers=st.lists(NUMBERS, min_size=1, max_size=7))
@example([1.8e308])
@example([-1.8e305])
@example([10**400])
def test_any_numbers_make_a_page(numbers):
    drawn = itertools.cycle(numbers)
    found = result({"privacy.dp": "example"})
    rounds = [
        {k: v if k == "round" else next(drawn) for k, v in entry.items()}
        for entry in found.rounds[:2]
    ]
    found = replace(
        found,
        rounds=rounds,
        summary={key: next(drawn) for key in found.summary},
        privacy={key: next(drawn) for key in found.privacy or {}},
        leakage=[{"vantage": "V1", "attack": "x", "auc": next(drawn), "auc_low": None}],
        seconds={key: next(drawn) for key in found.seconds},
    )
    page = page_of(found)
    assert not re.search(r'"-?(nan|inf)', page)  # of a picture
    assert not re.search(r"\b(nan|inf)\b", Parsed(page).text)


SERVERS = {
    "plain": "the server saw every client's update",
    "secagg": "the server saw only sums, as long as it followed the protocol",
    "secagg-active": "the server saw only sums, also if it departed from the protocol",
    "he": "the server added ciphertexts that it couldn't read",
}


@pytest.mark.parametrize("protect", SERVERS)
def test_the_verdict_is_in_words_and_from_what_was_measured(protect, tmp_path):
    found = result({"protection.protect": protect})
    told = words(verdict(facts_of(found)))
    assert told == f"62 % against 25 % before; {SERVERS[protect]}."
    seen = "V1" if protect == "plain" else "V2"
    folder = folder_of(tmp_path, found, audit_of(found, seen))
    told = words(verdict(facts_of(Result.load(folder), folder)))
    assert told.startswith(f"62 % against 25 % before; {SERVERS[protect]}; membership AUC 0.9")
    assert told.endswith(" from there.")


def test_what_was_not_measured_is_not_in_the_verdict():
    blind = result(summary={}, rounds=[{"round": 0}, {"round": 1, "clients": 3}])
    assert verdict(facts_of(blind)) == "The server saw every client's update."
    found = result(summary={"federated": 0.3})
    found = replace(found, rounds=[])
    assert words(verdict(facts_of(found))).startswith("30 %; the server")


def test_a_loss_and_chance_are_called_so(tmp_path):
    worse = result({"privacy.dp": "client"}, after=0.011)
    told = words(verdict(facts_of(worse)))
    assert told.startswith("1.1 % against 25 % before, worse than untouched; ")
    assert told.endswith("ε 8.00 at δ 10⁻⁵ for each client.")
    same = result({"privacy.dp": "example"}, after=0.27)
    folder = folder_of(tmp_path, same, audit_of(same, strong=0.05))
    told = words(verdict(facts_of(Result.load(folder), folder)))
    assert "27 % against 25 % before, no gain that the interval shows" in told
    assert "from there, which guessing may reach too" in told
    assert "ε 8.00 at δ 10⁻⁵ for each pair" in told
    seeded = result({"privacy.dp": "example", "privacy.simulated_noise": True})
    assert "protects nobody" in verdict(facts_of(seeded))


def test_public_pairs_that_do_better_are_named():
    found = result({"privacy.dp": "example"}, after=0.27)
    found = replace(found, summary=found.summary | {"control": 0.292})
    assert "below the 29 % of public pairs alone" in words(verdict(facts_of(found)))
    found = replace(found, summary=found.summary | {"control": 0.26})
    assert "public pairs" not in verdict(facts_of(found))


def test_the_best_round_is_named_where_it_is_another_one():
    for best, told in ((3, True), (6, False)):
        page = page_of(replace(result(), best={"round": best, "validation": 0.5}))
        assert ("Best on validation: round 3." in page) == told


def test_a_refuted_claim_is_in_the_verdict(tmp_path):
    found = result({"privacy.dp": "example"})
    folder = folder_of(tmp_path, found, audit_of(found))
    told = json.loads((folder / "audit.json").read_text())
    for refuted in (True, False):
        (folder / "audit.json").write_text(json.dumps(told | {"refuted": refuted}))
        facts = facts_of(Result.load(folder), folder)
        assert ("which the audit refutes" in verdict(facts)) == refuted


def test_abandoned_rounds_come_first():
    found = result()
    rounds = [*found.rounds[:5], *({**e, "abandoned": "too few"} for e in found.rounds[5:])]
    told = verdict(facts_of(replace(found, rounds=rounds)))
    assert told.startswith("2 of 6 rounds were abandoned; ")


def test_an_audit_of_another_run_is_not_shown(tmp_path):
    found = result()
    folder = folder_of(tmp_path, found, audit_of(found))
    found.save(folder)  # run again: no leakage in it
    text = Parsed(report_of(folder).read_text()).text
    assert "Nobody has attacked this run yet" in text
    assert "delta-margin" not in text
    found = result({"training.seed": 5})
    found.save(folder)
    assert "patch answered" not in report_of(folder).read_text()  # the trust audit was of seed 0


def figures_of(page: str) -> list[str]:
    return re.findall(r"<figure>.*?</figure>", page, re.DOTALL)


def test_u12_each_line_beside_what_it_is_to_be_read_against(page):
    first, elsewhere = figures_of(page)[:2]
    assert "federated 62" in first
    assert "central 71" in first
    for told in ("29\u202f%", "unseen"):
        assert told not in first.replace("mean 29", "")
    assert "zero-shot 25" not in elsewhere
    assert len(re.findall("<svg", elsewhere)) == 3


def test_u12_no_vantage_hides_another(page):
    roc = next(each for each in figures_of(page) if "falsely accused" in each)
    drawn = re.findall(r"<h3>(V\d)", roc)
    assert drawn == ["V1", "V2", "V3", "V4", "V5"]
    lines = re.findall(r'<path d="([^"]*)" class="main">', roc)
    assert len(lines) == 5
    assert lines[3] == lines[4]  # of two that see the same, both are there


def test_figures_follow_light_and_dark(page):
    for figure in figures_of(page):
        assert not re.search(r'(fill|stroke)="', figure)
        assert "#" not in re.sub(r"&#\d+;", "", figure)
    assert "prefers-color-scheme: dark" in page


def test_no_folder_of_this_machine_is_told(tmp_path):
    found = result({"data.source": "/home/alice/x-rays", "model.name": "C:\\models\\ours"})
    page = page_of(replace(found, data={**found.data, "name": "/home/alice/x-rays"}))
    assert "alice" not in page
    assert "C:" not in page
    assert "…/x-rays" in page


def test_keys_that_nobody_knows_are_not_printed():
    found = result()
    found = replace(
        found,
        protection={**found.protection, "parameters": {"he_key": "SECRET", "clip": "none"}},
        privacy={"unit": "example", "epsilon": 1.0, "delta": 1e-5, "seed_of_noise": "SECRET"},
        config=found.config | {"token": "SECRET"},
        data=found.data | {"client_pairs": ["SECRET"]},
    )
    assert "SECRET" not in page_of(found)


def test_a_result_of_an_older_version_still_has_a_page():
    rounds = [{"round": k, "test_one_of_100": 0.2 + k / 10} for k in range(3)]
    old = Result(
        summary={"zero_shot": 0.2, "federated": 0.4},
        rounds=rounds,
        privacy=None,
        protection={"name": "plain", "mode": "plain", "parameters": {}},
        leakage=[],
        config={"data": "emoji", "rounds": 2, "references": True, "rows_of_old": 3, "rank": 0},
        versions={},
        seed=0,
    )
    text = words(Parsed(page_of(old)).text)
    assert "40 % against 20 % before" in text
    assert "over 2 rounds" in text


def test_a_server_without_data_and_an_empty_run_have_pages():
    bare = Result({}, [], None, {}, [], {}, {}, 0)
    assert "What this run does not protect" in Parsed(page_of(bare)).text
    nodes = [
        {"round": 0},
        {
            "round": 1,
            "nodes_one_of_100": 0.4,
            "nodes_one_of_100_low": 0.3,
            "nodes_one_of_100_high": 0.5,
            "clients": 3,
        },
    ]
    found = replace(bare, rounds=nodes)
    assert words(verdict(facts_of(found))).startswith("40 % on what the nodes held out; ")
    assert "Pairs held out by the nodes" in page_of(found)


def test_candidates_are_counted_where_they_are_fewer():
    """U3: "one of 100" was recall among 83."""
    text = words(Parsed(page_of(result())).text)
    assert "354 pairs, among 83 captions" in text
    assert "558 pairs, among 100 captions" in text


@pytest.mark.parametrize(
    ("asked", "told", "untold"),
    [
        ({}, "Each client's update, from the server", "What the sum tells"),
        (
            {"protection.protect": "secagg"},
            "from a server that departs from the protocol",
            "Each client's update, from the server",
        ),
        ({"protection.protect": "secagg-active"}, "What the sum tells", "departs"),
        ({"protection.protect": "he"}, "with one client", "departs"),
        ({"privacy.dp": "example"}, "More than one pair", "No noise was added"),
        ({"privacy.dp": "client"}, "is trusted to clip", "No noise was added"),
        (
            {"privacy.dp": "distributed", "protection.protect": "secagg"},
            "Who takes part is public",
            "No noise was added",
        ),
        (
            {"privacy.dp": "example", "privacy.simulated_noise": True},
            "Such a run protects nobody",
            "No noise was added",
        ),
    ],
)
def test_what_is_left_open_follows_from_the_runs_own_settings(asked, told, untold):
    """U4: nothing is said of designers, or of protections, that the run didn't have."""
    text = " ".join(f"{gap.title}. {gap.text}" for gap in unprotected(facts_of(result(asked))))
    assert told in text
    assert untold not in text
    assert "nobody was protected from this machine" in text


def test_a_deployed_run_is_told_from_a_simulation(tmp_path):
    folder = folder_of(tmp_path, result())
    (folder / "run-config.toml").write_text("rounds = 6\n")
    text = Parsed(report_of(folder).read_text()).text
    assert "replaces the app" in text
    assert "runs a simulation" not in text
    assert "fedvlm deploy run DIR" in text


def test_the_command_makes_the_settings_again():
    import shlex

    from fedvlm.config import config_from
    from fedvlm.reporting.settings import command_of

    asked = {"training.rounds": 3, "privacy.dp": "example", "training.learning_rate": 0.002}
    parts = shlex.split(command_of(config_from(asked), deployed=False))
    given = dict(each.split("=", 1) for each in parts if "=" in each)
    assert config_from(given) == config_from(asked)
    assert parts[:2] == ["fedvlm", "simulate"]


def test_a_notebook_shows_the_verdict_and_the_table():
    """U11: a result had no `_repr_html_`."""
    found = replace(result(), data={"name": HOSTILE})
    told = found._repr_html_()
    assert "62\u202f% against 25\u202f% before" in told
    assert told.count("<tr>") == 6
    assert "<script>" not in told
    assert "<img" not in told


def test_json_may_hold_no_number_where_one_belongs(tmp_path):
    folder = folder_of(tmp_path, result(), None, trust=False)
    (folder / "trust.json").write_text("[1, 2")
    (folder / "audit.json").write_text("null")
    told = json.loads((folder / "result.json").read_text())
    told["summary"]["central"] = math.nan
    (folder / "result.json").write_text(json.dumps(told))
    text = Parsed(report_of(folder).read_text()).text
    assert "nan" not in text


def test_u4_no_label_of_the_library_speaks_of_the_demos_designers():
    """Somebody's own folder has domains, wards or devices."""
    root = Path(fedvlm.__file__).parent
    for folder in ("reporting", "compare", "trust"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text("utf-8")
            assert '"unseen designer' not in text, path
    assert all("designer" not in label for label, _ in ROWS)
