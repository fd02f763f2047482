"""What this library does on a card: `python -m simulations.gpu_check [--json FILE]`.

Three parts, under eight minutes together on one card, without a network: the embedded demo, which
must end where it ends on the CPU; a CLIP of ViT-L/14's size; and a Qwen2.5-VL of two billion
weights. The large models' weights are random: what is measured is time and memory. `--tiny` runs
all parts with small models, on a CPU too, to see that the check itself works.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fedvlm.errors import FedVLMError
from fedvlm.models.placement import resolve_device
from simulations import _gpu_parts as parts
from simulations import _sized
from simulations.benchmarks._harness import machine

_BUDGET_S = 480.0


def demo(device: str, tiny: bool) -> dict[str, Any]:
    """Run the embedded demo on the CPU and on the device, from one seed."""
    from fedvlm.config import config_from, load_config
    from fedvlm.federation import simulate

    path = Path(__file__).parent / "configs" / "demo.toml"
    base = config_from({"references": False, "rounds": 1 if tiny else 3}, load_config(path))
    found: dict[str, Any] = {}
    for name in ("cpu", device):
        start = time.perf_counter()
        result = simulate(config_from({"device": name}, base))
        found[name] = {
            "one_of_100": result.summary["federated"],
            "low": result.rounds[-1]["test_one_of_100_low"],
            "high": result.rounds[-1]["test_one_of_100_high"],
            "seconds": time.perf_counter() - start,
        }
    here, there = found["cpu"], found[device]
    found["agrees"] = here["low"] <= there["one_of_100"] <= here["high"]
    return found


def _lines(
    found: dict[str, parts.Measured], operations: int, units: int, unit: str, peak: float | None
) -> list[dict[str, Any]]:
    plain = found["transformers + peft"]
    rows = []
    for name, each in found.items():
        row: dict[str, Any] = {
            "what": name,
            "step_seconds": each.step_seconds,
            f"{unit}_per_second": units / each.step_seconds,
            "peak_bytes": each.peak_bytes,
            "loss": each.loss,
            "speed_ratio": plain.step_seconds / each.step_seconds,
        }
        if each.peak_bytes and plain.peak_bytes:
            row["memory_ratio"] = plain.peak_bytes / each.peak_bytes
        if peak:
            row["mfu"] = operations / each.step_seconds / peak
        rows.append(row)
    return rows


def _say(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    for row in rows:
        shown = [f"{row['what']:<36}"]
        for key, value in row.items():
            if key != "what" and value is not None:
                shown.append(f"{key}={value:.4g}")
        print("  " + "  ".join(shown), flush=True)


def main(
    device: Annotated[str, typer.Option(help="cuda, cuda:N, mps; cpu only with --tiny")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="small models, to try the check")] = False,
    peak_tflops: Annotated[
        float | None, typer.Option(help="the card's dense bf16 peak, where it isn't known")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write it all here")] = None,
) -> None:
    """Run the three parts and print what they took."""
    start = time.perf_counter()
    try:
        chosen = resolve_device(device)
    except FedVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if chosen.type == "cpu" and not tiny:
        print("error: this takes a card; --tiny tries the check on a CPU", file=sys.stderr)
        raise typer.Exit(2)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type
    peak = peak_tflops * 1e12 if peak_tflops else parts.card_peak(name)
    print(f"{name}, torch {torch.__version__}", flush=True)
    told: dict[str, Any] = {"card": name, "torch": torch.__version__, "machine": machine()}
    steps = 2 if tiny else 10
    size, batch = (_sized.TINY, 8) if tiny else (_sized.L14, 64)
    found, count = parts.clip_part(chosen, size, batch, steps)
    told["clip"] = _lines(found, count, batch, "images", peak)
    _say(f"CLIP {'tiny' if tiny else 'ViT-L/14'}, LoRA, bf16 base, batch {batch}", told["clip"])
    language, batch = (parts.QWEN_TINY, 2) if tiny else (parts.QWEN_2B, 4)
    found, count, tokens = parts.qwen_part(chosen, language, batch, steps)
    told["qwen"] = _lines(found, count, tokens, "tokens", peak)
    _say(f"Qwen2.5-VL {'tiny' if tiny else '2B'}, LoRA, bf16 base, batch {batch}", told["qwen"])
    try:
        told["demo"] = demo(str(chosen), tiny)
        print(f"\nembedded demo: {json.dumps(told['demo'])}", flush=True)
    except FedVLMError as error:  # the emoji aren't here, and there is no network to get them
        told["demo"] = {"skipped": str(error)}
        print(f"\nembedded demo skipped: {error}", flush=True)
    told["seconds"] = time.perf_counter() - start
    print(f"\n{told['seconds']:.0f} s in all (at most {_BUDGET_S:.0f} are meant)")
    if json_file is not None:
        json_file.write_text(json.dumps(told, indent=2) + "\n")
    if told["demo"].get("agrees") is False:
        print("the demo ends elsewhere than on the CPU", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
