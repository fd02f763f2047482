"""The deliberate faults can still be put in: each text stands where it should, once."""

from pathlib import Path

import pytest

from simulations.mutate import apply, explained
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
    assert all((ROOT / test).is_file() for test in edit.tests)


def test_t1_every_package_has_about_a_dozen():
    for package in PACKAGES:
        assert sum(edit.package == package for edit in EDITS) >= 12
    assert {edit.package for edit in EDITS} == PACKAGES
    assert len({(edit.file, edit.old) for edit in EDITS}) == len(EDITS)


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
