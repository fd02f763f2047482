"""The deliberate faults can still be put in, and what came of them is told truly."""

import dataclasses
from pathlib import Path

import pytest

from simulations import mutate
from simulations.mutate import Finding, apply, explained
from tests.mutation.edits import EDITS

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "fedvlm/privacy",
    "fedvlm/federation",
    "fedvlm/leakage",
    "secure/aggregation",
    "secure/he",
    "secure/smpc",
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_t1_each_text_stands_once_and_its_tests_exist(edit):
    text = (ROOT / edit.file).read_text(encoding="utf-8")
    assert text.count(edit.old) == 1, (
        f"{edit.file}: {edit.old!r} stands {text.count(edit.old)} times"
    )
    assert edit.new != edit.old
    assert edit.tests
    assert all((ROOT / test.split("::")[0]).is_file() for test in edit.tests)


def test_t1_every_package_has_about_a_dozen():
    for package in PACKAGES:
        assert sum(edit.package == package for edit in EDITS) >= 12
    assert {edit.package for edit in EDITS} == PACKAGES
    assert len({edit.name for edit in EDITS}) == len(EDITS)


def test_an_edit_whose_text_is_gone_fails_loudly(tmp_path):
    edit = EDITS[0]
    path = tmp_path / edit.file
    path.parent.mkdir(parents=True)
    path.write_text("nothing of it")
    with pytest.raises(LookupError, match="0 times"):
        apply(edit, tmp_path)
    path.write_text(f"before {edit.old} after")
    apply(edit, tmp_path)
    assert path.read_text() == f"before {edit.new} after"


def test_survivors_that_nobody_explained_are_told_apart():
    told = explained(EDITS[:2], {EDITS[0].name: "survived", EDITS[1].name: "caught"})
    assert told == [f"{EDITS[0].name}: not explained"]


def test_the_page_says_what_the_table_holds_and_none_survives_unexplained():
    found = mutate.read(mutate.TABLE)
    assert set(found) <= {edit.name for edit in EDITS}
    outcomes = {name: finding.outcome for name, finding in found.items()}
    assert set(outcomes.values()) <= {"caught", "survived", "hung"}
    assert not [line for line in explained(EDITS, outcomes) if line.endswith("not explained")]
    for finding in found.values():
        assert bool(finding.noticed_by) == (finding.outcome == "caught")
    page = (ROOT / "docs" / "how-it-is-tested.md").read_text(encoding="utf-8")
    for line in mutate.by_package(EDITS, outcomes):
        assert line in page, f"docs/how-it-is-tested.md lacks {line}"


def _few(monkeypatch, outcomes):
    """Let the faults be as many as the outcomes, and come out so; returns what was tried."""
    edits = EDITS[: len(outcomes)]
    told = dict(zip((edit.name for edit in edits), outcomes, strict=True))
    tried = []

    def one(edit, likely=""):
        tried.append((edit.name, likely))
        noticed = "tests/a.py::b" if told[edit.name] == "caught" else ""
        return Finding(told[edit.name], noticed, 1.0, mutate.key(edit))

    monkeypatch.setattr(mutate, "EDITS", edits)
    monkeypatch.setattr(mutate, "try_one", one)
    monkeypatch.setattr(mutate, "_copy", lambda target: None)
    monkeypatch.setattr(mutate, "_warm", lambda: None)
    return tried


def test_a_survivor_fails_until_it_is_explained(monkeypatch, tmp_path, capsys):
    _few(monkeypatch, ["caught", "survived"])
    monkeypatch.setattr(mutate, "_failed", lambda root, tests, *options: [])
    out = ["--out", str(tmp_path / "table.json")]
    assert mutate.main(out) == 1
    assert f"survivor: {EDITS[1].name}: not explained" in capsys.readouterr().out
    why = dataclasses.replace(EDITS[1], survives="the next line checks it too")
    monkeypatch.setattr(mutate, "EDITS", (EDITS[0], why))
    assert mutate.main(out) == 0


def test_a_test_that_fails_anyway_noticed_nothing(monkeypatch, tmp_path, capsys):
    _few(monkeypatch, ["caught"])
    monkeypatch.setattr(mutate, "_failed", lambda root, tests, *options: list(tests))
    assert mutate.main(["--out", str(tmp_path / "table.json")]) == 1
    assert "void" in capsys.readouterr().out
    assert mutate.read(tmp_path / "table.json")[EDITS[0].name].outcome == "void"


def test_a_run_goes_on_where_it_was(monkeypatch, tmp_path):
    """What is known is not tried again, unless it changed: then its own test comes first."""
    tried = _few(monkeypatch, ["caught", "caught", "hung"])
    monkeypatch.setattr(mutate, "_failed", lambda root, tests, *options: [])
    out = ["--out", str(tmp_path / "table.json")]
    assert mutate.main([*out, "--most", "2"]) == 0
    assert mutate.main(out) == 0
    assert [name for name, _ in tried] == [edit.name for edit in EDITS[:3]]
    assert mutate.main(out) == 0
    assert len(tried) == 3
    changed = dataclasses.replace(EDITS[0], new="another fault")
    monkeypatch.setattr(mutate, "EDITS", (changed, *EDITS[1:3]))
    assert mutate.main(out) == 0
    assert tried[3:] == [(EDITS[0].name, "tests/a.py::b")]


def test_a_fault_is_noticed_in_a_copy_and_by_name(monkeypatch, tmp_path):
    """The whole way, on a small tree: a fault that a test sees, and one that it doesn't."""
    (tmp_path / "fedvlm").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "fedvlm" / "__init__.py").touch()
    (tmp_path / "fedvlm" / "sum.py").write_text("def add(a, b):\n    return a + b  # the sum\n")
    (tmp_path / "tests" / "test_sum.py").write_text(
        "from fedvlm.sum import add\n\n\ndef test_sum():\n    assert add(1, 2) == 3\n"
    )
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\nmarkers = ["slow: long"]\npythonpath = ["."]\n'
    )
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    edit = dataclasses.replace(
        EDITS[0], file="fedvlm/sum.py", old="a + b", new="a - b", tests=("tests/test_sum.py",)
    )
    found = mutate.try_one(edit)
    assert (found.outcome, found.noticed_by) == ("caught", "tests/test_sum.py::test_sum")
    assert mutate.try_one(edit, found.noticed_by).noticed_by == found.noticed_by
    assert mutate.try_one(edit, "tests/test_sum.py::test_gone").outcome == "caught"
    blind = dataclasses.replace(edit, old="the sum", new="the difference")
    assert mutate.try_one(blind).outcome == "survived"
    assert mutate.control({"one": found}) == {"one": found}
    (tmp_path / "fedvlm" / "sum.py").write_text("def add(a, b):\n    return 0\n")
    assert mutate.control({"one": found})["one"].outcome == "void"
