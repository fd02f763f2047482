"""CrypTen beside the library: shares pass over as they are, and its provider is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from secure.errors import MissingExtraError, PolicyError
from secure.random import SecureRandom
from secure.smpc import _ring, baseline
from tests.secure.smpc.pairing import split


def test_the_trusted_first_party_is_refused():
    with pytest.raises(PolicyError, match="protect nothing"):
        baseline.Baseline()


def test_shares_are_cryptens():
    value = torch.randn(50, dtype=torch.float64)
    mine = split(value, 16, SecureRandom())
    theirs = [baseline.to_crypten(share) for share in mine]
    total = theirs[0].share + theirs[1].share
    decoded = theirs[0].encoder.decode(total)
    assert float((decoded.double() - value).abs().max()) <= 2.0**-16
    for share, tensor in zip(mine, theirs, strict=True):
        back = baseline.from_crypten(tensor)
        assert back.bits == 16
        assert torch.equal(back.value, share.value)


def test_cryptens_encoder_has_the_faults_that_ours_has_not():
    crypten = baseline.load_crypten()
    encoder = crypten.encoder.FixedPointEncoder(precision_bits=16)
    assert float(_ring.decode(torch.tensor([-131071]), 16)) == -131071 / 65536
    off = float(encoder.decode(torch.tensor([-131071]))) + 131071 / 65536
    assert abs(off) == pytest.approx(1.0, abs=1e-4)
    value = torch.tensor([0.9 / 65536])
    assert int(_ring.encode(value, 16)) == 1
    assert int(encoder.encode(value)) == 0


def test_a_missing_crypten_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name="crypten")

    monkeypatch.setattr(baseline.importlib, "import_module", missing)
    monkeypatch.setattr(baseline.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(MissingExtraError, match=r"fedvlm\[smpc\]"):
        baseline.load_crypten()


PROCESS = """
import json, os, sys
sys.path[:0] = sys.argv[3:]
import torch
torch.set_num_threads(1)
os.environ.update(WORLD_SIZE="2", RANK=sys.argv[1], DISTRIBUTED_BACKEND="gloo",
                  RENDEZVOUS="file://" + sys.argv[2], GLOO_SOCKET_IFNAME="lo")
from secure.smpc.baseline import Baseline
from tiny import tiny
baseline = Baseline(nothing_secret=True)
baseline.crypten.init()
model, batch, plan = tiny()
result = baseline.run(plan.program, plan.weights, plan.constants, {"features": batch})
error = float((result.value - model(batch).detach()).abs().max())
print(json.dumps([error, result.rounds, result.sent_bytes, result.seconds]))
"""


@pytest.mark.slow
def test_the_baseline_runs_the_same_program_in_two_processes(tmp_path):
    paths = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "meet"), *paths],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    for output in outputs:
        error, rounds, sent_bytes, seconds = json.loads(output.splitlines()[-1])
        # Four times the rounds of ours, and an error that its approximations explain.
        assert error < 0.2
        assert rounds > 100
        assert sent_bytes > 0
        assert seconds > 0
