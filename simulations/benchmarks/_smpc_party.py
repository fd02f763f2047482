"""One process of the benchmark: `python -m simulations.benchmarks._smpc_party ROLE FOLDER`.

ROLE is `server` or `client` (this library, mutual TLS on loopback), or `crypten0` or `crypten1`
(CrypTen over gloo on loopback). The client and CrypTen's party 0 write what they measured.
"""

import json
import math
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from secure.smpc import (
    Client,
    Folder,
    Identity,
    Owner,
    Plan,
    Query,
    compile,
    connect,
    listen,
    read_program,
)
from secure.smpc._series import gelu, gelu_tanh
from secure.smpc.baseline import Baseline
from secure.smpc.plan import PROGRAM_FILE, PUBLIC
from simulations.benchmarks._smpc_block import make

RUNS = 5
TIMEOUT_S = 120.0
SOFTMAX_SHAPE = (12, 50, 50)
SOFTMAX_SIGMA = 4.0
GELU_POINTS = 20_001
TRUNCATION_SIZE = 2_000_000
TRUNCATION_LIMIT = 1000.0


def softmax_scores() -> torch.Tensor:
    """Return the scores on which softmax is measured: normal, deviation 4."""
    generator = torch.Generator().manual_seed(1)
    return SOFTMAX_SIGMA * torch.randn(SOFTMAX_SHAPE, generator=generator, dtype=torch.float64)


def products(seed: int) -> torch.Tensor:
    """Return products of two fixed-point numbers to be cut: uniform on ±1000, 32 bits."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(TRUNCATION_SIZE, generator=generator, dtype=torch.float64) * 2 - 1
    return (x * TRUNCATION_LIMIT * 2.0**32).to(torch.int64)


def _server(folder: Path) -> None:
    plan = Plan.load(folder / "owner")
    owner = Owner(plan, Folder(folder / "server", 0), reveals=("embedding",))
    listener = listen("127.0.0.1", 0)
    (folder / "port.partial").write_text(str(listener.getsockname()[1]))
    (folder / "port.partial").rename(folder / "port")
    identity = Identity(folder / "identities", "server")
    owner.serve(listener, identity, threading.Event(), sessions=RUNS, timeout_s=TIMEOUT_S)


def _client(folder: Path) -> None:
    while not (folder / "port").exists():
        time.sleep(0.05)
    port = int((folder / "port").read_text())
    identity = Identity(folder / "identities", "client")
    client = Client(
        read_program(folder / "owner" / PUBLIC / PROGRAM_FILE),
        Folder(folder / "client", 1),
        lambda: connect("127.0.0.1", port, identity, "server", TIMEOUT_S),
    )
    model, batch = make()
    answers = [client.ask({"features": batch[:1]}, Query("embedding")) for _ in range(RUNS)]
    plain = []
    with torch.no_grad():
        for _ in range(11):
            start = time.perf_counter()
            model(batch[:1])
            plain.append(time.perf_counter() - start)
        expected = model.double()(batch[:1].double())
    traffic = answers[-1].traffic
    error = statistics.median(float((a.value - expected).abs().max()) for a in answers)
    found = {
        "rounds": traffic.rounds,
        "bytes": max(traffic.sent_bytes, traffic.received_bytes),
        "seconds": min(a.seconds for a in answers[1:]),
        "error": error,
        "plain_seconds": min(plain),
    }
    (folder / "ours.json").write_text(json.dumps(found))


def _crypten(rank: int, folder: Path) -> None:
    with Baseline(rank, folder / "meeting", nothing_secret=True) as baseline:
        found = _measure_crypten(baseline, folder)
    if rank == 0:
        (folder / "crypten.json").write_text(json.dumps(found))


def _measure_crypten(baseline: Baseline, folder: Path) -> dict[str, float]:
    model, batch = make()
    plan = compile(model, batch)
    runs = [
        baseline.run(plan.program, plan.weights, plan.constants, {"features": batch[:1]})
        for _ in range(RUNS)
    ]
    with torch.no_grad():
        expected = model.double()(batch[:1].double())
    # The median of the runs: CrypTen's decoder is off by 1 once in some 10^5 values.
    error = statistics.median(float((r.value - expected).abs().max()) for r in runs)
    scores = softmax_scores()
    shared = baseline.share(scores, 1).softmax(-1).get_plain_text().double()
    radius = json.loads((folder / "ranges.json").read_text())["gelu"]
    points = np.linspace(-radius, radius, GELU_POINTS)
    x = baseline.share(torch.from_numpy(points), 1)
    inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
    activated = (x * (inner.tanh() + 1) * 0.5).get_plain_text().double().numpy()
    failures = checked = 0
    runs_needed = json.loads((folder / "ranges.json").read_text())["truncations"]
    arithmetic = baseline.crypten.mpc.primitives.ArithmeticSharedTensor
    for seed in range(runs_needed):
        whole = products(seed)
        value = arithmetic(whole, precision=0, src=0)
        cut = value.div_(1 << 16).reveal()
        failures += int(((cut - (whole >> 16)).abs() > 2).sum())
        checked += len(whole)
    return {
        "rounds": runs[-1].rounds,
        "bytes": runs[-1].sent_bytes,
        "seconds": min(r.seconds for r in runs[1:]),
        "error": error,
        "softmax_error": float((shared - scores.softmax(-1)).abs().max()),
        # Against the form of GELU that it computes: the better of the two for it.
        "gelu_error": min(
            float(np.abs(activated - gelu(points)).max()),
            float(np.abs(activated - gelu_tanh(points)).max()),
        ),
        "truncation_failures": failures,
        "truncations": checked,
    }


def main() -> None:
    """Run one role."""
    torch.set_num_threads(1)
    role, folder = sys.argv[1], Path(sys.argv[2])
    if role == "server":
        _server(folder)
    elif role == "client":
        _client(folder)
    else:
        _crypten(int(role.removeprefix("crypten")), folder)


if __name__ == "__main__":
    main()
