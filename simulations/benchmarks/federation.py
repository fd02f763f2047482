"""A federation in one process beside the same app on Flower's own simulation, and on SuperLink."""

from collections.abc import Callable
from typing import Any

from simulations.benchmarks._federation_runs import Measured, in_process, on_flower
from simulations.benchmarks._federation_trips import flower_seconds, protocol_seconds
from simulations.benchmarks._harness import Row, lower_is_better

CLIENTS = 10
SETTINGS: dict[str, Any] = {
    **{"clients": CLIENTS, "rounds": 5, "local_epochs": 1, "references": False},
}
SIZES = (10, 100, 1000)
ASKED = 50
RANKS = (4, 16, 64)
_FLOWER = "Flower's simulation (Ray), same app"


def grown(clients: int) -> dict[str, Any]:
    """Return the settings of a run with many clients, of whom up to 50 are asked in a round."""
    fraction = min(1.0, ASKED / clients)
    more = {"clients": clients, "fraction": fraction, "partition": "iid", "workers": 1}
    return SETTINGS | more | {"rounds": 3}


def _compared(ours: Measured, theirs: Measured) -> list[Row]:
    app = f"{CLIENTS} clients, embedded model, LoRA, {ours.rounds} rounds"
    return [
        lower_is_better("round_seconds", ours.round_s, "s", _FLOWER, theirs.round_s, app),
        lower_is_better(
            "startup_seconds",
            ours.startup_s,
            "s",
            _FLOWER,
            theirs.startup_s,
            "from the command to the first message to train",
        ),
        lower_is_better(
            "peak_bytes", ours.peak_bytes, "B", _FLOWER, theirs.peak_bytes, "all processes together"
        ),
    ]


def _model_bytes() -> int:
    from fedvlm.models import load_model

    backbone = load_model("embedded").vlm.backbone
    return sum(each.numel() * each.element_size() for each in backbone.parameters())


def run(say: Callable[[str], None]) -> list[Row]:
    """Measure rounds, start, memory, bytes, a protocol's trip, and growth."""
    say("in this process …")
    ours = in_process(SETTINGS)
    say("on Flower's simulation …")
    theirs = on_flower(SETTINGS, CLIENTS)
    rows = _compared(ours, theirs)
    bytes_, full = ours.upload_bytes + ours.download_bytes, 2 * _model_bytes()
    rows.append(
        lower_is_better(
            "bytes_per_round",
            bytes_,
            "B",
            "sending the full model, fp32",
            full,
            "a client, both ways",
        )
    )
    say("trips over SuperLink …")
    rows.append(
        lower_is_better(
            "trip_seconds",
            protocol_seconds(),
            "s",
            "Flower's own empty message, round trip",
            flower_seconds(),
            "a trip of secagg-active that trains nothing; 3 SuperNodes; ours with TLS",
        )
    )
    for rank in RANKS:
        say(f"rank {rank} …")
        found = in_process(SETTINGS | {"rank": rank, "rounds": 3})
        note = f"rank {rank}, {found.parameters:,} parameters; round {found.round_s:.2f} s"
        both = found.upload_bytes + found.download_bytes
        rows.append(Row(f"bytes_per_round_rank_{rank}", both, "B", note=note))
    for clients in SIZES:
        say(f"{clients} clients in this process …")
        found = in_process(grown(clients))
        note = f"{min(clients, ASKED)} asked in a round, one worker"
        for name, value, unit in (
            ("startup_seconds", found.startup_s, "s"),
            ("round_seconds", found.round_s, "s"),
            ("peak_bytes", found.peak_bytes, "B"),
        ):
            rows.append(Row(f"{name}_{clients}_clients", value, unit, note=note))
    return rows
