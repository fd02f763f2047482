"""Private inference beside CrypTen: one encoder block of ViT-B/32's size, two real processes.

Both run the same operations on the same machine in turn, one thread a party, over loopback; both
leave out what is dealt beforehand. This library speaks mutual TLS and truncates without failure;
CrypTen speaks gloo in the clear and truncates as it does.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from secure.random import SecureRandom
from secure.smpc import Query, compile, make_identities
from secure.smpc import program as program_module
from secure.smpc._attention import attend
from secure.smpc._channel import PairChannel
from secure.smpc._domains import softmax_parameters
from secure.smpc._material import deal_pair
from secure.smpc._party import CountingParty, Party, Share
from secure.smpc._series import FUNCTIONS
from secure.smpc.dealer import write_files
from secure.smpc.pair import run_both
from simulations.benchmarks import _smpc_party as party_process
from simulations.benchmarks._harness import Row, lower_is_better
from simulations.benchmarks._smpc_block import make

PEER = "CrypTen 0.4.1"
TRUNCATIONS = 100_000_000
_LIMIT_S = 900


def _start(role: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "simulations.benchmarks._smpc_party", role, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _both(roles: tuple[str, str], folder: Path) -> None:
    """Run two processes to their end; if one fails, end the other."""
    processes = [_start(role, folder) for role in roles]
    try:
        for process in processes:
            if process.wait(_LIMIT_S) != 0:
                raise RuntimeError(f"a process of {' and '.join(roles)} failed")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def _in_one_process(
    protocol: Callable[..., Share], *inputs: Share, random: SecureRandom
) -> torch.Tensor:
    """Run a protocol with two parties in threads and add the shares up."""
    counter = CountingParty(0, {})
    protocol(counter, *(Share(x.value.to("meta"), x.bits) for x in inputs))
    materials = deal_pair(counter.items, {}, random)
    masks = [torch.from_numpy(random.words(x.value.numel()).view(np.int64)) for x in inputs]
    masks = [m.view(x.value.shape) for m, x in zip(masks, inputs, strict=True)]
    shares = (
        [Share(x.value - m, x.bits) for x, m in zip(inputs, masks, strict=True)],
        [Share(m, x.bits) for x, m in zip(inputs, masks, strict=True)],
    )
    channels = PairChannel.pair(300.0)

    def work(role: int) -> Callable[[], Share]:
        party = Party(role, channels[role], materials[role], {})
        return lambda: protocol(party, *shares[role])

    first, second = run_both({0: work(0), 1: work(1)}, channels)
    if not isinstance(first, Share) or not isinstance(second, Share):
        raise TypeError("a protocol gave no share")
    return (first.value + second.value).to(torch.float64) / 2.0**first.bits


def _softmax_error(random: SecureRandom) -> float:
    scores = party_process.softmax_scores()
    eye = torch.eye(scores.shape[-1], dtype=torch.float64).expand_as(scores)
    parameters = softmax_parameters("benchmark", scores, eye, causal=False)
    query = Share((scores * 2.0**16).round().to(torch.int64), 16)
    unit = Share((eye * 2.0**16).round().to(torch.int64).contiguous(), 16)
    found = _in_one_process(
        lambda party, q, k, v: attend(party, q, k, v, parameters), query, unit, unit, random=random
    )
    return float((found - scores.softmax(-1)).abs().max())


def _truncation_failures(random: SecureRandom) -> tuple[int, int]:
    failures = checked = 0
    while checked < TRUNCATIONS:
        whole = party_process.products(checked // party_process.TRUNCATION_SIZE)
        found = _in_one_process(
            lambda party, x: party.run(party.rescale(x, 16))[0], Share(whole, 32), random=random
        )
        difference = found * 2.0**16 - (whole >> 16)
        failures += int(((difference < 0) | (difference > 1)).sum())
        checked += len(whole)
    return failures, checked


def run(progress: Callable[[str], None]) -> list[Row]:
    """Measure this library and CrypTen, and return one row a metric."""
    random = SecureRandom()
    model, batch = make()
    plan = compile(model, batch)
    query = Query("embedding")
    series = next(
        op.series for op in plan.program.operations if isinstance(op, program_module.Activation)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_identities(folder / "identities", days=1)
        plan.save(folder / "owner")
        ranges = {
            "gelu": series.radius,
            "truncations": TRUNCATIONS // party_process.TRUNCATION_SIZE,
        }
        (folder / "ranges.json").write_text(json.dumps(ranges))
        progress("dealing")
        write_files(plan.program, query, party_process.RUNS, folder)
        progress("this library: two processes over TLS")
        _both(("server", "client"), folder)
        ours = json.loads((folder / "ours.json").read_text())
        progress("CrypTen: two processes over gloo")
        _both(("crypten0", "crypten1"), folder)
        peer = json.loads((folder / "crypten.json").read_text())
    progress("softmax, GELU and truncation")
    softmax_error = _softmax_error(random)
    points = np.linspace(-series.radius, series.radius, party_process.GELU_POINTS)
    encoded = Share(torch.from_numpy(np.rint(points * 2.0**20)).to(torch.int64), 20)
    activated = _in_one_process(
        lambda party, x: party.run(party.series(x, series))[0], encoded, random=random
    )
    gelu_error = float(np.abs(activated.numpy() - FUNCTIONS["gelu"][0](points)).max())
    failures, checked = _truncation_failures(random)
    cost = plan.cost(query=query)
    return [
        lower_is_better("rounds", ours["rounds"], "1", PEER, peer["rounds"]),
        lower_is_better(
            "online_bytes_per_party",
            ours["bytes"],
            "B",
            PEER,
            peer["bytes"],
            "the party that sends more",
        ),
        lower_is_better(
            "online_seconds",
            ours["seconds"],
            "s",
            PEER,
            peer["seconds"],
            f"best of {party_process.RUNS - 1}, both",
        ),
        lower_is_better(
            "output_max_error",
            ours["error"],
            "1",
            PEER,
            peer["error"],
            f"largest of an output, median of {party_process.RUNS} runs",
        ),
        lower_is_better(
            "softmax_max_error",
            softmax_error,
            "1",
            PEER,
            peer["softmax_error"],
            "12 × 50 × 50 scores of deviation 4",
        ),
        lower_is_better(
            "gelu_max_error",
            gelu_error,
            "1",
            PEER,
            peer["gelu_error"],
            f"on ±{series.radius:g}, the calibrated range",
        ),
        lower_is_better(
            "truncation_failures",
            failures,
            "1",
            PEER,
            peer["truncation_failures"],
            f"in {checked:.0e} products uniform on ±1000",
        ),
        lower_is_better(
            "overhead_over_plaintext",
            ours["seconds"] / ours["plain_seconds"],
            "1",
            PEER,
            peer["seconds"] / ours["plain_seconds"],
            "online seconds over fp32 on one thread",
        ),
        Row("dealer_bytes", cost.dealer_bytes, "B", note="a query, to the server; made beforehand"),
        Row("setup_bytes", cost.setup_bytes, "B", note="masked weights, to the client, once"),
        Row(
            "predicted_rounds_error",
            abs(cost.rounds - ours["rounds"]) / ours["rounds"],
            "1",
            note="plan.cost() against the run",
        ),
        Row(
            "predicted_bytes_error",
            abs(max(cost.server_bytes, cost.client_bytes) - ours["bytes"]) / ours["bytes"],
            "1",
            note="plan.cost() against the run",
        ),
        Row(
            "predicted_seconds_error",
            abs(cost.compute_s - ours["seconds"]) / ours["seconds"],
            "1",
            note=f"{cost.compute_s:.3f} s of arithmetic predicted against the run on loopback",
        ),
    ]
