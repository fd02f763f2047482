"""S14: keys are made by a command; a wrong use is one line and code 2."""

import stat

import pytest

from secure.aggregation import Roster, load_identity
from secure.aggregation.__main__ import main


def test_s14_keys_and_roster_from_the_command_line(tmp_path, capsys):
    public = []
    for name in ("a", "b", "c"):
        assert main(["keys", "new", str(tmp_path / "own" / f"{name}.key")]) == 0
        public.append(capsys.readouterr().out.strip())
    path = tmp_path / "own" / "a.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert main(["keys", "show", str(path)]) == 0
    assert capsys.readouterr().out.strip() == public[0]
    assert public[0] != load_identity(path).private_bytes().hex()
    assert (
        main(["keys", "roster", str(tmp_path / "roster.json"), *public[:2], f"7={public[2]}"]) == 0
    )
    keys = Roster.load(tmp_path / "roster.json").keys
    assert {member: key.hex() for member, key in keys.items()} == dict(
        zip((1, 2, 7), public, strict=True)
    )
    assert main(["keys", "simulation", str(tmp_path / "all"), "4"]) == 0
    assert len(Roster.load(tmp_path / "all" / "roster.json").keys) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["new", "{}/there"],
        ["show", "{}/none"],
        ["roster", "{}/r", "zz"],
        ["roster", "{}/r", "x=00"],
        ["roster", "{}/r", "00"],
        ["roster", "{}/r", "1=" + "00" * 32, "1=" + "11" * 32],
        ["roster", "{}/none/r", "00" * 32],
        ["simulation", "{}/s", "0"],
        ["simulation", "{}/s", "many"],
        ["nonsense"],
        ["roster", "{}/r"],
    ],
)
def test_s14_a_wrong_use_is_one_line_and_code_2(tmp_path, capsys, arguments):
    (tmp_path / "there").write_text("")
    assert main(["keys", *(each.format(tmp_path) for each in arguments)]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
