"""What one noise for all is worth, and what one round costs on the wire beside LoRA's six."""

import tempfile
from pathlib import Path
from statistics import fmean

from fedvlm.config import config_from
from fedvlm.federation import simulate
from simulations._heads_cells import cells, evaluate
from simulations._heads_world import load_world
from simulations.benchmarks._harness import Row, higher_is_better, lower_is_better
from simulations.two_classes import CAPTIONS, make

SEEDS = (0, 1, 2)
CLIENTS = 10
CAPTIONS_DECLARED = 1200  # about as many as the embedded data's clients hold
LORA_ROUNDS = 6


def shared_noise_gain() -> Row:
    """Compare points over the public-only control: noise shared, and each client's own."""
    world, gains = load_world(), {}
    named = {cell.name: cell for cell in cells()}
    control = [evaluate(world, named["public-only control"], seed)["test"] for seed in SEEDS]
    for who in ("planned for 6 of 10", "each alone"):
        cell = named[f"prototypes, {who}, ε = 8"]
        found = [evaluate(world, cell, seed)["test"] for seed in SEEDS]
        gains[who] = fmean(found) - fmean(control)
    return higher_is_better(
        "shared_noise_gain",
        gains["planned for 6 of 10"],
        "points",
        "each client noises alone",
        gains["each alone"],
        f"one of 100 over the public-only control ({fmean(control):.1f} %), prototypes, ε = 8, "
        f"δ = 1e-3, ten clients, {len(SEEDS)} seeds; shared: planned for 6 honest of 10",
    )


def one_round_bytes() -> Row:
    """Compare a client's whole traffic under secure aggregation: one sum, and LoRA's rounds."""
    captions = [*CAPTIONS, *(f"caption {number}" for number in range(CAPTIONS_DECLARED - 2))]
    sent = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        make(folder, 10 * CLIENTS)
        common = {
            "data": str(folder),
            "clients": CLIENTS,
            "partition": "iid",
            "protect": "secagg",
            "rounds": 1,
            "references": False,
            "workers": 1,
        }
        for adapter in ("prototypes", "lora"):
            own = {"head_captions": "\n".join(captions)} if adapter == "prototypes" else {}
            entry = simulate(config_from(common | own | {"adapter": adapter})).rounds[-1]
            sent[adapter] = entry["upload_bytes_per_client"] + entry["download_bytes_per_client"]
    return lower_is_better(
        "one_round_bytes",
        sent["prototypes"],
        "B",
        f"LoRA of rank 16, {LORA_ROUNDS} rounds",
        LORA_ROUNDS * sent["lora"],
        f"up and down, one client of {CLIENTS}, secure aggregation; prototypes of "
        f"{CAPTIONS_DECLARED} declared captions",
    )
