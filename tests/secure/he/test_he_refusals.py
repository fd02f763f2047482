"""H4, H5: what a caller, a file or a command may bring: the right result, or one line of ours."""

import hashlib
import socket
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secure.errors import ParameterError, SecureError
from secure.he import (
    EncryptedAdapter,
    EncryptedLinear,
    EncryptedLoRA,
    HEClient,
    HEParams,
    ReleaseError,
    ReleasePolicy,
    top_k,
)
from secure.he import query as query_module
from secure.he import serve as serve_module
from secure.he._files import load_array
from secure.he.certificates import write_self_signed
from secure.he.plans import ResiduePlan, RotationPlan
from secure.he.policy import HEPolicy, load_key, provision_key
from secure.he.serve import Limits, load_layer

from .he_tools import FAST, PRECISE, RESIDUE, client, through_the_wire, unit_rows


class TestPolicy:
    def result(self, entries: int):
        layer = EncryptedLinear(np.eye(entries), params=PRECISE)
        owner = HEClient(PRECISE)
        keys = owner.evaluation_keys(layer.plan)
        return owner, layer(owner.encrypt(np.full(entries, 0.01), layer.plan), keys)

    def test_h4_a_policy_is_refused_for_what_it_was_not_made_for(self):
        owner, result = self.result(64)
        error = PRECISE.predicted_error()
        made = ReleasePolicy.for_advantage
        with pytest.raises(ReleaseError, match="made for 1 entries, this result has 64"):
            owner.release(result, made(error, 1, 1, 0.5))
        with pytest.raises(ReleaseError, match=r"errors up to 1\.0e-12"):
            owner.release(result, made(1e-12, 256, 1, 0.5))
        assert owner.released == 0
        owner.release(result, made(error, 64, 1, 2.0**-10))
        assert owner.released == 1

    def test_h4_a_policy_knows_its_advantage(self):
        policy = ReleasePolicy.for_advantage(1e-9, 100, 50, 2.0**-12)
        assert policy.advantage <= 2.0**-12
        assert (policy.error, policy.entries, policy.max_queries) == (1e-9, 100, 50)
        with pytest.raises(ParameterError, match="hides nothing"):
            ReleasePolicy(20, 2.0**-20, 1000, 1e-3, 10)
        # Steps so fine that they would show the grain of a float64.
        with pytest.raises(ParameterError, match="sigma"):
            ReleasePolicy(40, 1.0, 1, 1e-6, 1)


class TestZeros:
    """H5: weights of zero are weights: a LoRA starts with B = 0."""

    @pytest.mark.parametrize("plan", [RotationPlan(FAST, 5, 7), ResiduePlan(FAST, 5, 7, 1)])
    def test_h5_all_weights_zero(self, plan):
        bias = np.linspace(-1, 1, 7)
        for shift in (None, bias):
            layer = EncryptedLinear(np.zeros((7, 5)), shift, params=FAST, plan=plan)
            got = through_the_wire(layer, np.full((1, 5), 0.4), client(FAST))
            assert np.abs(got - (0 if shift is None else bias)).max() <= layer.error < 1e-3

    def test_h5_zero_blocks_of_a_gallery(self):
        weight = np.zeros((9000, 8))
        weight[100, 3] = 1.0
        layer = EncryptedLinear(weight, params=FAST, plan=RotationPlan(FAST, 8, 9000))
        got = through_the_wire(layer, np.eye(8)[[3]], client(FAST))[0]
        assert np.abs(got - weight[:, 3]).max() <= layer.error

    @pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
    def test_h5_a_fresh_lora(self, a, b):
        params = HEParams.select(1, 1.0, 1e-2)
        rng = np.random.default_rng(0)
        base = unit_rows(rng, 6, 5)
        down, up = a * unit_rows(rng, 2, 5), b * unit_rows(rng, 6, 2)
        layer = EncryptedLoRA(base, None, down, up, 1.0, params=params)
        values = unit_rows(rng, 1, 5)
        got = through_the_wire(layer, values, client(params))
        assert np.abs(got - values @ (base + up @ down).T).max() <= layer.error

    def test_h5_an_adapter_of_zeros(self):
        params = HEParams.select(2, 1.0, 1e-2)
        zero = (np.zeros((4, 4)), None)
        adapter = EncryptedAdapter(zero, (np.eye(4), np.ones(4)), params=params)
        got = through_the_wire(adapter, np.full((1, 4), 0.2), client(params))
        assert np.abs(got - 1).max() <= adapter.error


ODD = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.booleans(),
    st.integers(-3, 10**30),
    st.floats(),
    st.complex_numbers(),
    st.lists(st.one_of(st.floats(), st.text(max_size=2), st.none()), max_size=4),
    st.binary(max_size=3),
    st.sampled_from(
        [
            np.full((2, 2), 1e300),
            np.full((2, 2), 1e-320),
            np.array([["a", "b"]]),
            np.array([[object(), None]], dtype=object),
            np.zeros((2, 2), dtype=complex),
            np.zeros((2, 0)),
            np.array([["2020-01-01"]], dtype="datetime64[D]"),
            torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True),
            torch.ones(2, 2, dtype=torch.complex64),
        ]
    ),
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(value=ODD)
def test_h5_any_argument_is_taken_or_refused_by_a_type_of_ours(value):
    plan = RotationPlan(FAST, 2, 2)
    calls = (
        lambda: EncryptedLinear(value, params=FAST),
        lambda: EncryptedLinear(np.eye(2), value, params=FAST),
        lambda: EncryptedLinear(np.eye(2), params=FAST, batch=value),
        lambda: EncryptedLoRA(np.eye(2), None, np.eye(2), np.eye(2), value, params=PRECISE),
        lambda: client(FAST).encrypt(value, plan),
        lambda: top_k(value, 1),
        lambda: top_k(np.ones(3), value),
        lambda: ReleasePolicy(value, 1.0, 1, 1e-3, 1),
        lambda: ReleasePolicy.for_advantage(value, 1, 1, 0.5),
        lambda: ReleasePolicy.for_advantage(1e-9, value, 1, 0.5),
        lambda: HEParams.select(value, 1.0, 1e-3),
        lambda: HEParams.select(0, value, 1e-3),
        lambda: HEParams.select(0, 1.0, 1e-3, batch=value),
        lambda: HEParams(value, (51, 55), 28),
        lambda: HEParams(4096, value, 28),
        lambda: HEParams(4096, (51, 55), value),
        lambda: RotationPlan(FAST, value, 2),
        lambda: Limits(max_queries=value),
        lambda: Limits(timeout=value),
    )
    assert all(one_line(call) for call in calls)


def one_line(call) -> bool:
    """Run a call that may be refused by an error of ours: in one line, and by nothing else."""
    try:
        call()
    except SecureError as error:
        return "\n" not in str(error)
    return True


def test_h5_half_precision_and_gradients_are_taken():
    weight = torch.eye(3, dtype=torch.bfloat16, requires_grad=True)
    layer = EncryptedLinear(weight, params=FAST)
    values = torch.full((3,), 0.25, dtype=torch.bfloat16, requires_grad=True)
    owner = client(FAST)
    got = owner.decrypt(layer(owner.encrypt(values, layer.plan), owner.evaluation_keys(layer.plan)))
    assert np.abs(got - 0.25).max() <= layer.error
    with pytest.raises(ParameterError, match="1e\\+100"):
        EncryptedLinear(np.full((2, 2), 1e300), params=FAST)
    with pytest.raises(ParameterError, match="whole number, got str"):
        EncryptedLinear(np.eye(2), params=FAST, batch="3")  # pyright: ignore
    assert top_k([0.1, 0.9], 1).tolist() == [1]
    with pytest.raises(ParameterError, match="not finite"):
        top_k(np.array([np.nan, 1.0]), 1)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return write_self_signed(tmp_path_factory.mktemp("tls"))


def damaged(tmp_path) -> list:
    """Return files that are almost arrays."""
    np.save(tmp_path / "good.npy", np.eye(3))
    np.savez(tmp_path / "good.npz", weight=np.eye(3))
    np.savez(tmp_path / "other.npz", other=np.eye(3))
    np.save(tmp_path / "empty.npy", np.zeros((0, 3)))
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "nan.npy", np.full((2, 2), np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    good = (tmp_path / "good.npy").read_bytes()
    whole = {
        "torn.npy": good[:90],
        "none.npy": b"",
        "header.npy": good[:40],
        # 10^15 rows in a file of 200 bytes.
        "huge.npy": good.replace(b"(3, 3)", b"(%d, 3)" % 10**15).replace(b" " * 16, b"", 1)[:200],
        "zip.npz": (tmp_path / "good.npz").read_bytes()[:120],
        "crc.npz": (tmp_path / "good.npz").read_bytes().replace(b"\xf0?", b"\xf1?"),
    }
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("weight.npy", "no array")
    (tmp_path / "folder.npy").mkdir()
    return [path for path in tmp_path.iterdir() if not path.name.startswith("good")]


def test_h5_files_that_are_no_arrays_are_one_line(tls, tmp_path, capsys):
    end = ["--cert", str(tls[0]), "--key", str(tls[1]), "--seconds", "0.1"]
    for path in [*damaged(tmp_path), tmp_path / "absent.npy"]:
        with pytest.raises(ParameterError):
            load_layer(path)
        assert serve_module.main([str(path), *end]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        if path.name != "other.npz":
            code = query_module.main([str(path), "--ca", str(tls[0]), "--port", "1"])
            assert code == 2
            assert capsys.readouterr().err.count("\n") == 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_h5_fuzzed_array_files_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    name = data.draw(st.sampled_from(["a.npy", "a.npz"]))
    if name == "a.npy":
        np.save(folder / name, np.eye(4))
    else:
        np.savez(folder / name, weight=np.eye(4), bias=np.ones(4))
    raw = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    assert one_line(lambda: load_layer(folder / name))


def test_h5_commands_fail_before_they_compute(tls, tmp_path, capsys):
    np.save(tmp_path / "query.npy", np.full(4, 0.1))
    np.savez(tmp_path / "query.npz", query=np.full(4, 0.1))
    ask = ["--ca", str(tls[0]), "--port", "1"]
    for arguments, said in (
        ([str(tmp_path / "query.npz"), *ask], ".npz"),
        ([str(tmp_path / "query.npy"), *ask, "--out", str(tmp_path / "no" / "x.npy")], "no folder"),
        ([str(tmp_path / "query.npy"), *ask, "--out", str(tmp_path)], "is a folder"),
        ([str(tmp_path / "query.npy"), *ask, "--top", "0"], "--top"),
    ):
        # Port 1 would be refused later, as exit code 3.
        assert query_module.main(arguments) == 2
        assert said in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        end = ["--cert", str(tls[0]), "--key", str(tls[1])]
        arguments = [str(tmp_path / "query.npy"), *end, "--port", str(port)]
        assert serve_module.main(arguments) == 2
        assert f"can't listen on 127.0.0.1:{port}: " in capsys.readouterr().err
    for odd in (["--port", "99999"], ["--queries", "0"], ["--seconds", "nan"], ["--error", "nan"]):
        np.save(tmp_path / "gallery.npy", np.eye(4))
        assert serve_module.main([str(tmp_path / "gallery.npy"), *end, *odd]) == 2
        assert capsys.readouterr().err.count("error: ") == 1


def test_a_header_of_petabytes_allocates_nothing(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(3))
    raw = (tmp_path / "a.npy").read_bytes()
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d, 3), }" % 10**13
    (tmp_path / "a.npy").write_bytes(raw[:10] + head.ljust(117) + b"\n" + raw[128:])
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32));"
        "from pathlib import Path; from secure.he._files import load_array;"
        f"load_array(Path({str(tmp_path / 'a.npy')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ParameterError" in done.stderr
    with pytest.raises(ParameterError):
        load_array(tmp_path / "a.npy")


def test_residue_parameters_have_no_rotation_to_offer():
    with pytest.raises(ParameterError, match="special prime"):
        RotationPlan(RESIDUE, 2, 2)


def test_a_key_file_is_a_key_or_one_line(tmp_path):
    policy = HEPolicy(clients=3, bound=1.0, rounds=1)
    provision_key(tmp_path / "he.key", policy)
    good = (tmp_path / "he.key").read_bytes()
    rng = np.random.default_rng(0)
    spoiled = [b"", b"x" * 100, good[:-1], good + b"x", bytes(1 << 24)]
    for _ in range(40):
        data = bytearray(good)
        # Headers above all, and a digest that fits again.
        place = int(rng.integers(0, 120 if rng.integers(2) else len(good) - 40))
        data[place : place + 4] = rng.bytes(4)
        spoiled.append(bytes(data[:-32]) + hashlib.sha256(data[:-32]).digest())
    for index, data in enumerate(spoiled):
        (tmp_path / "other.key").write_bytes(data)
        assert one_line(lambda: load_key(tmp_path / "other.key"))
        if index < 5:
            with pytest.raises(SecureError):
                load_key(tmp_path / "other.key")
    for place in (tmp_path, tmp_path / "no" / "he.key"):
        with pytest.raises(ParameterError):
            provision_key(place, policy)
        with pytest.raises(ParameterError):
            load_key(place)
