"""Files of private inference that are damaged, or made to hurt: right, or one clear error."""

import hashlib
import json
import os
import random
import shutil
import stat

import numpy as np
import pytest
import torch

from secure.errors import ParameterError, SecureError
from secure.smpc import Folder, MaterialError, Plan, Query, WireError, infer, read_program
from secure.smpc._leakage import describe
from secure.smpc._query import requirements
from secure.smpc.dealer import main, write_files
from secure.smpc.parcels import write_secret
from secure.smpc.program import Program
from tests.secure.fixed_random import FixedRandom
from tests.secure.smpc.serving import attempt
from tests.secure.smpc.tiny import tiny

TOP = Query("top")
QUERIES = (TOP, Query("scores"), Query("top", k=2, labels=3), Query("embedding", batch=2))


def _mangled(data, draw):
    data = bytearray(data)
    kind = draw.randrange(5)
    at = draw.randrange(len(data))
    if kind == 0:
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        data = data[:at]
    elif kind == 2:
        data[at : at + draw.randrange(1, 40)] = draw.randbytes(draw.randrange(40))
    elif kind == 3:
        end = min(len(data), at + draw.randrange(1, 60))
        data[at:end] = bytes(reversed(data[at:end]))
    else:
        data[at:at] = data[draw.randrange(len(data)) :][:50]
    return bytes(data)


def test_m8_damaged_program_files_are_refused(tmp_path):
    program = tiny()[2].program
    whole = program.to_json().encode()
    draw = random.Random(1)
    path = tmp_path / "program.json"
    for _ in range(300):
        path.write_bytes(_mangled(whole, draw))
        found, error = attempt(lambda: read_program(path))
        if error is not None:
            assert str(path) in str(error)
            assert str(error).isprintable()
            continue
        # Only what JSON passes over was touched.
        assert found == program
    path.write_bytes(whole)
    path.write_bytes(whole.replace(b'"sha256":"', b'"sha256":"0', 1))
    with pytest.raises(WireError, match="damaged"):
        read_program(path)


def _leaves(value, path=()):
    """Yield the path of every value in a JSON document."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from _leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for at, each in enumerate(value):
            yield from _leaves(each, (*path, at))


ODD = (None, True, -1, 0, 1, 3, 7, 2**20, 2**40, -(2**70), 10**400, 0.0, -1.5, 1e300, float("inf"))
ODDER = ("", "x", "features", "no\nline", [], [1], [0], [-4], [2**33, 2**33], {}, {"a": 1})


def _rewritten(value, draw):
    """Change one thing, as somebody would who can compute the hash too."""
    value = json.loads(json.dumps(value))
    paths = list(_leaves(value))[1:]
    path = draw.choice(paths)
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    kind = draw.randrange(6)
    if kind <= 2:
        old = parent[path[-1]]
        number = isinstance(old, int) and not isinstance(old, bool)
        near = (old + 1, old - 1, 2 * old, -old) if number else ()
        parent[path[-1]] = draw.choice((*ODD, *ODDER, *near, *near, *near))
    elif kind == 3 and isinstance(parent, list):
        draw.shuffle(parent)
    elif kind == 4:
        del parent[path[-1]]
    else:
        other = draw.choice(paths)
        found = value
        for step in other:
            found = found[step]
        parent[path[-1]] = json.loads(json.dumps(found))
    return value


def _signed(value):
    value = {k: v for k, v in value.items() if k != "sha256"} if isinstance(value, dict) else value
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return json.dumps({**value, "sha256": hashlib.sha256(text.encode()).hexdigest()})


def _loaded(text):
    program = Program.from_json(text)
    requirements(program, Query("embedding"))
    return program


@pytest.mark.parametrize(
    ("seed", "count", "most"),
    [(2, 50, 1), pytest.param(3, 3000, 60, marks=pytest.mark.slow)],
)
def test_m8_programs_made_to_hurt_are_refused_or_run(seed, count, most):
    _, batch, plan = tiny()
    whole = json.loads(plan.program.to_json())
    assert Program.from_json(_signed(whole)) == plan.program
    draw = random.Random(seed)
    ran = 0
    for _ in range(count):
        changed = _signed(_rewritten(whole, draw))
        program, error = attempt(lambda text=changed: _loaded(text))
        if program is None:
            assert isinstance(error, WireError)
            assert len(str(error)) < 400
            continue
        for query in draw.sample(QUERIES, 2):
            try:
                requirements(program, query)
                str(describe(program, query))
            except SecureError:
                continue
        if (
            ran < most
            and {k: w.shape for k, w in program.weights.items()}
            == {k: tuple(w.shape) for k, w in plan.weights.items()}
            and program.constants == plan.program.constants
        ):
            # It loads with the owner's weights, so it's run with them: any value, no stray error.
            ran += 1
            again = Plan(program, plan.weights, plan.constants)
            attempt(lambda chosen=again: infer(chosen, {"features": batch[:1]}, TOP))
    assert ran == most


@pytest.fixture
def dealt(tmp_path):
    program = tiny()[2].program
    write_files(program, TOP, 1, tmp_path, FixedRandom(1))
    return tmp_path, program


def test_m8_a_damaged_parcel_or_set_up_is_noticed_before_it_is_used(dealt, tmp_path):
    path, program = dealt
    setup = Folder(path / "server", 0).setup(program)
    draw = random.Random(3)
    for side, role in (("server", 0), ("client", 1)):
        (file,) = (path / side).glob("*.parcel")
        whole, parcel = file.read_bytes(), bytes.fromhex(file.stem)
        for at in [*range(0, 176, 5), *(draw.randrange(len(whole)) for _ in range(30)), -1]:
            data = bytearray(whole)
            data[at] ^= 1 << draw.randrange(8)
            folder = tmp_path / "one"
            folder.mkdir()
            (folder / file.name).write_bytes(data)
            with pytest.raises(SecureError):
                Folder(folder, role).claim(program, TOP, setup.identifier, parcel).preload()
            shutil.rmtree(folder)
        for cut in (whole[:-1], whole + b"x", whole[:-40]):
            folder.mkdir()
            (folder / file.name).write_bytes(cut)
            with pytest.raises(MaterialError):
                Folder(folder, role).claim(program, TOP, setup.identifier, parcel).preload()
            shutil.rmtree(folder)
        Folder(path / side, role).claim(program, TOP, setup.identifier, parcel).preload()
    name = path / "server" / f"{program.digest[:16]}.setup"
    whole = name.read_bytes()
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << draw.randrange(8)
        name.write_bytes(data)
        with pytest.raises(SecureError):
            Folder(path / "server", 0).setup(program)


def test_m8_a_tombstone_and_its_name_are_on_the_disk_before_the_parcel_goes(dealt, monkeypatch):
    path, program = dealt
    folder = Folder(path / "client", 1)
    setup = Folder(path / "server", 0).setup(program)
    parcel = folder.choose(program, TOP)
    file = path / "client" / f"{parcel.hex()}.parcel"
    synced, sync = [], os.fsync

    def record(descriptor):
        info = os.fstat(descriptor)
        assert file.exists()
        synced.append("folder" if stat.S_ISDIR(info.st_mode) else "file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    folder.claim(program, TOP, setup.identifier, parcel)
    assert synced == ["file", "folder"]
    assert not file.exists()
    # Written files are as durable.
    synced.clear()
    monkeypatch.setattr(os, "fsync", lambda d: synced.append(stat.S_ISDIR(os.fstat(d).st_mode)))
    write_secret(path / "secret", [b"x"])
    assert synced == [False, True]

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ParameterError, match="No space left"):
        write_secret(path / "other", [b"x"])
    assert not list(path.glob("other*"))


def test_m8_a_parcel_that_cannot_be_marked_as_used_is_not_used(dealt, monkeypatch):
    path, program = dealt
    folder = Folder(path / "client", 1)
    setup = Folder(path / "server", 0).setup(program)
    parcel = folder.choose(program, TOP)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MaterialError, match="can't mark the parcel .* as used: No space"):
        folder.claim(program, TOP, setup.identifier, parcel)


def test_m8_damaged_weights_are_refused(tmp_path):
    plan = tiny()[2]
    plan.save(tmp_path)
    weights = tmp_path / "weights.npz"
    whole = weights.read_bytes()
    draw = random.Random(4)
    for _ in range(150):
        weights.write_bytes(_mangled(whole, draw))
        found, error = attempt(lambda: Plan.load(tmp_path))
        if found is None:
            assert "weights.npz" in str(error)
            continue
        assert all(torch.equal(found.weights[k], w) for k, w in plan.weights.items())
        assert all(torch.equal(found.constants[k], c) for k, c in plan.constants.items())
    for arrays in (
        {"weight:head.weight": np.zeros(3, dtype=object)},
        {"weight:head.weight": np.array(["a"])},
        {"other": np.zeros(3)},
        {},
    ):
        np.savez(weights, **arrays)
        with pytest.raises(SecureError, match=r"weights\.npz"):
            Plan.load(tmp_path)
    # A header that asks for more than there is.
    weights.write_bytes(whole.replace(b"(16, 5)", b"(9**9,)", 1))
    with pytest.raises(ParameterError, match=r"weights\.npz"):
        Plan.load(tmp_path)
    weights.write_bytes(whole)
    for data in (b"", b"\x93NUMPY\x01\x00", whole):
        (tmp_path / "public" / "embedding.npy").write_bytes(data)
        with pytest.raises(ParameterError, match=r"embedding\.npy"):
            Plan.load(tmp_path)


def test_m8_the_dealers_command_line_has_no_stray_error(tmp_path, capsys):
    plan = tiny()[2]
    plan.save(tmp_path)
    program = tmp_path / "public" / "program.json"
    (tmp_path / "file").write_text("")
    assert main(["files", str(program), "--out", str(tmp_path / "file" / "x")]) == 2
    assert "can't write" in capsys.readouterr().err
    assert main(["files", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert main(["identities", str(tmp_path / "ids")]) == 0
    serve = ["serve", str(program), "--identity", str(tmp_path / "ids")]
    for more in (
        ("--port", "99999"),
        ("--host", "no.such.host.invalid"),
        ("--max-batch", "0"),
        ("--max-labels", "999"),
        ("--timeout", "nan"),
        ("--identity", str(tmp_path)),
    ):
        assert main([*serve, *more]) == 2, more
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 7
    program.write_bytes(program.read_bytes()[:-20])
    assert main(serve) == 3
