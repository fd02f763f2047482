"""CrypTen beside the library: shares pass over as they are, and its provider is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from secure.errors import MissingExtraError, ParameterError, PolicyError
from secure.random import SecureRandom
from secure.smpc import _crypten, _ring, baseline
from secure.smpc._crypten import public_data
from tests.secure.smpc.pairing import split


def test_the_trusted_first_party_is_refused(tmp_path):
    with pytest.raises(PolicyError, match="protect nothing"):
        baseline.Baseline(0, tmp_path / "meeting")
    with pytest.raises(ParameterError, match="ranks 0 and 1"):
        baseline.Baseline(2, tmp_path / "meeting", nothing_secret=True)


def test_cryptens_provider_and_generators_are_locked_for_the_whole_process():
    crypten = baseline.load_crypten()
    share = split(torch.randn(5, dtype=torch.float64), 16, SecureRandom())[0]
    handed = baseline.to_crypten(share)
    assert torch.equal((handed + handed).share, 2 * share.value)
    with pytest.raises(PolicyError, match="trusted first party protects nothing"):
        handed * handed
    with pytest.raises(PolicyError, match="trusted first party"):
        crypten.mpc.get_default_provider()
    for name in ("prev", "next", "local", "global"):
        with pytest.raises(PolicyError, match="Mersenne Twister"):
            crypten.generators[name][torch.device("cpu")]
    with pytest.raises(PolicyError, match="Mersenne Twister"):
        crypten.common.rng.generate_random_ring_element((3,))
    # A word in the configuration doesn't open another way.
    crypten.cfg.mpc.provider = "TTP"
    try:
        with pytest.raises(PolicyError):
            handed.square()
    finally:
        crypten.cfg.mpc.provider = "TFP"
    with public_data():
        assert crypten.mpc.get_default_provider().NAME == "TFP"
    with pytest.raises(PolicyError):
        crypten.mpc.get_default_provider()


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

    monkeypatch.setattr(_crypten.importlib, "import_module", missing)
    monkeypatch.setattr(_crypten.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(MissingExtraError, match=r"fedvlm\[smpc\]"):
        baseline.load_crypten()


PROCESS = """
import json, sys
sys.path[:0] = sys.argv[3:]
import torch
torch.set_num_threads(1)
from pathlib import Path
from secure.errors import PolicyError
from secure.smpc.baseline import Baseline
from tiny import tiny
model, batch, plan = tiny()
with Baseline(int(sys.argv[1]), Path(sys.argv[2]), nothing_secret=True) as baseline:
    result = baseline.run(plan.program, plan.weights, plan.constants, {"features": batch})
try:
    baseline.crypten.mpc.get_default_provider()
    raise SystemExit("still unlocked")
except PolicyError:
    pass
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
