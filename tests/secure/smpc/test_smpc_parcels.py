"""Parcels on disk: for one program and query, one party, and one use."""

import shutil
import stat

import pytest
import torch

from secure.errors import ParameterError
from secure.smpc import (
    Folder,
    MaterialError,
    Owner,
    PlanMismatchError,
    Query,
    compile,
    read_program,
    register,
)
from secure.smpc.dealer import main, write_files
from secure.smpc.errors import SetupChangedError
from secure.smpc.parcels import Setup
from tests.secure.fixed_random import FixedRandom
from tests.secure.smpc.tiny import tiny

QUERY = Query("top")


@pytest.fixture
def dealt(tmp_path):
    program = tiny()[2].program
    write_files(program, QUERY, 2, tmp_path, FixedRandom(1))
    return tmp_path, program, Folder(tmp_path / "server", 0), Folder(tmp_path / "client", 1)


def _claim(folder, program, setup, parcel, query=QUERY):
    return folder.claim(program, query, setup.identifier, parcel)


def test_both_halves_open_once(dealt):
    _, program, server, client = dealt
    setup = server.setup(program)
    first = client.choose(program, QUERY)
    for folder in (server, client):
        _claim(folder, program, setup, first).preload()
        with pytest.raises(MaterialError, match="used before"):
            _claim(folder, program, setup, first)
    second = client.choose(program, QUERY)
    assert second != first
    _claim(client, program, setup, second)
    with pytest.raises(MaterialError, match="deal more"):
        client.choose(program, QUERY)


def test_a_copy_put_back_is_refused(dealt):
    path, program, server, client = dealt
    setup, parcel = server.setup(program), client.choose(program, QUERY)
    name = f"{parcel.hex()}.parcel"
    for folder, side in ((server, "server"), (client, "client")):
        shutil.copy(path / side / name, path / "copy")
        _claim(folder, program, setup, parcel).close()
        shutil.move(path / "copy", path / side / name)
        with pytest.raises(MaterialError, match="used before"):
            _claim(folder, program, setup, parcel)
    # T1: nor is it offered: a client would choose it again and again.
    other = client.choose(program, QUERY)
    assert other != parcel
    client.discard(other)
    with pytest.raises(MaterialError, match="deal more"):
        client.choose(program, QUERY)


def test_files_are_for_their_owner_only(dealt):
    path, *_ = dealt
    found = list(path.rglob("*.parcel")) + list(path.rglob("*.setup"))
    assert len(found) == 6
    for file in found:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_parcels_for_another_query_set_up_or_party_are_refused(dealt):
    path, program, server, client = dealt
    setup, parcel = server.setup(program), client.choose(program, QUERY)
    with pytest.raises(PlanMismatchError, match="another program or query"):
        _claim(server, program, setup, parcel, Query("top", k=2))
    with pytest.raises(SetupChangedError):
        server.claim(program, QUERY, bytes(16), parcel)
    with pytest.raises(MaterialError, match="another party"):
        _claim(Folder(path / "server", 1), program, setup, parcel)
    with pytest.raises(MaterialError, match="isn't in the folder"):
        _claim(server, program, setup, bytes(16))
    with pytest.raises(MaterialError, match="deal more"):
        client.choose(program, Query("top", k=2))
    # None of the refusals has used it up.
    _claim(server, program, setup, parcel).close()


def test_a_cut_parcel_is_refused(dealt):
    path, program, server, client = dealt
    setup, parcel = server.setup(program), client.choose(program, QUERY)
    file = path / "server" / f"{parcel.hex()}.parcel"
    file.write_bytes(file.read_bytes()[:-8])
    material = _claim(server, program, setup, parcel)
    with pytest.raises(MaterialError, match="too early|damaged"):
        material.preload()
    file.write_bytes(b"nonsense")
    with pytest.raises(MaterialError, match="not a parcel"):
        Folder(path / "server", 0).claim(program, QUERY, setup.identifier, parcel)


def test_the_set_up_stays_and_is_checked(dealt):
    path, program, server, _ = dealt
    first = server.setup(program)
    write_files(program, QUERY, 1, path, FixedRandom(2))
    assert server.setup(program).identifier == first.identifier
    other = Setup("00" * 32, first.identifier, first.key)
    (path / "server" / f"{program.digest[:16]}.setup").write_bytes(other.to_bytes())
    with pytest.raises(PlanMismatchError):
        server.setup(program)
    with pytest.raises(MaterialError, match="no set-up"):
        Folder(path / "client", 1).setup(program)
    assert first.key.hex() not in repr(first)


def test_the_command_line_deals_files(tmp_path, capsys):
    program = tiny()[2].program
    (tmp_path / "program.json").write_text(program.to_json())
    arguments = ["files", str(tmp_path / "program.json"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--count", "2", "--reveal", "scores"]) == 0
    assert len(capsys.readouterr().out.split()) == 2
    assert read_program(tmp_path / "program.json") == program
    assert main([*arguments, "--count", "0"]) == 2
    assert main([*arguments, "--k", "99"]) == 2
    (tmp_path / "program.json").write_text("{}")
    assert main(arguments) == 3


def test_a_missing_folder_or_program_is_named(tmp_path):
    with pytest.raises(ParameterError, match="doesn't exist"):
        Folder(tmp_path / "none", 0)
    with pytest.raises(ParameterError, match="missing"):
        read_program(tmp_path / "none.json")


class Bare(torch.nn.Linear):
    pass


@register("Bare")
def _bare(builder, module, batch, path):
    x = builder.real(batch["features"], "features")
    return builder.linear(x, module.weight, module.bias, "layer")


def test_two_models_share_no_weight_mask_though_their_ranges_agree(tmp_path):
    torch.manual_seed(0)
    batch = torch.randn(4, 6)
    batch[:, 5] = 0  # the calibration doesn't show in what the two differ
    model, tuned = Bare(6, 3).eval(), Bare(6, 3).eval()
    tuned.load_state_dict(model.state_dict())
    with torch.no_grad():
        tuned.weight[:, 5] += 1
    masked, encoded = [], []
    for each in (model, tuned):
        plan = compile(each, batch)
        write_files(plan.program, Query("top"), 1, tmp_path)
        owner = Owner(plan, Folder(tmp_path / "server", 0))
        masked.append(owner._masked.weights["layer.weight"])
        encoded.append(owner._secrets.encoded["layer.weight"])
    # What a client of both is sent doesn't tell the difference of the weights.
    assert not torch.equal(masked[1] - masked[0], encoded[1] - encoded[0])
