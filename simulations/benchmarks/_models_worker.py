"""One measurement in a process of its own, so that its peak memory is its own.

`python -m simulations.benchmarks._models_worker '{"what": …}'` prints a line of JSON.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simulations import _sized

_RANK, _ALPHA = 16, 32


def _peak() -> int:
    """Return the most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _held() -> int:
    """Return the bytes that this process holds now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system doesn't say how much a process holds")


def _ours(size: _sized.ClipSize, batch: int, steps: int) -> dict[str, float]:
    """Train LoRA by this library's local loop."""
    from fedvlm.adapters import AdapterSpec, attach
    from fedvlm.models.vlm import VLM
    from fedvlm.seeds import ExperimentSeed
    from fedvlm.training import LocalSettings, train_adapter

    vlm = VLM(_sized.clip_of(size))
    view = attach(vlm, AdapterSpec(rank=_RANK, alpha=_ALPHA), ExperimentSeed(0))
    pairs = _sized.random_pairs(size, batch * steps)
    chosen = LocalSettings(epochs=1, batch_size=batch, learning_rate=1e-4)
    rng = np.random.default_rng(0)
    train_adapter(vlm, view, pairs, np.arange(batch), chosen, rng)  # allocators, threads
    start = time.perf_counter()
    loss = train_adapter(vlm, view, pairs, np.arange(batch * steps), chosen, rng)
    return {"seconds": (time.perf_counter() - start) / steps, "peak": _peak(), "loss": loss}


def _peers(size: _sized.ClipSize, batch: int, steps: int) -> dict[str, float]:
    """Train it by the loop that one writes with transformers and peft."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=_RANK, lora_alpha=_ALPHA, target_modules=list(_sized.TARGETS))
    model: Any = get_peft_model(_sized.clip_of(size), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    pairs = _sized.random_pairs(size, batch * steps)

    def epoch(rows: np.ndarray) -> float:
        losses = []
        model.train()
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            out = model(**pairs.images(part), **pairs.captions(part), return_loss=True)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            losses.append(out.loss.item())
        return float(np.mean(losses))

    epoch(np.arange(batch))
    start = time.perf_counter()
    loss = epoch(np.random.default_rng(0).permutation(batch * steps))
    return {"seconds": (time.perf_counter() - start) / steps, "peak": _peak(), "loss": loss}


def _large_batch(size: _sized.ClipSize, batch: int, micro: int) -> dict[str, float]:
    """One contrastive step; what it takes beyond model and inputs, its loss and gradient."""
    from fedvlm.adapters import AdapterSpec, attach
    from fedvlm.models.vlm import VLM
    from fedvlm.seeds import ExperimentSeed
    from fedvlm.training import LocalSettings
    from fedvlm.training.contrastive import loss_gradients

    vlm = VLM(_sized.clip_of(size))
    view = attach(vlm, AdapterSpec(rank=_RANK, alpha=_ALPHA), ExperimentSeed(0))
    view.write(np.random.default_rng(0).normal(0, 0.02, view.size).astype(np.float32))
    pairs = _sized.random_pairs(size, batch)
    vlm.train()
    loss_gradients(vlm, pairs, np.arange(2), LocalSettings(batch_size=2))  # threads, allocators
    for parameter in view.parameters:
        parameter.grad = None
    before = _held()
    start = time.perf_counter()
    chosen = LocalSettings(batch_size=batch, micro_batch=micro)
    loss = loss_gradients(vlm, pairs, np.arange(batch), chosen)
    seconds = time.perf_counter() - start
    peak = _peak() - before
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in view.parameters]
    flat = torch.cat([g.reshape(-1) for g in grads]).double()
    probe = torch.randn(len(flat), generator=torch.Generator().manual_seed(2)).double()
    return {
        "peak": peak,
        "loss": loss,
        "seconds": seconds,
        "norm": float(flat.norm()),
        "along": float(flat @ probe),
    }


def _resident(folder: str, image_size: int) -> dict[str, float]:
    """Load a folder, and go through all of its images once as a tower takes them."""
    from transformers import CLIPImageProcessorPil

    from fedvlm.data import load_folder
    from fedvlm.models.pixels import PixelInputs

    start = time.perf_counter()
    data = load_folder(folder)
    loaded = time.perf_counter() - start
    square = {"height": image_size, "width": image_size}
    processor = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=square)
    rows = np.arange(len(data))
    inputs = PixelInputs(data, rows, processor, lambda *_: None)
    order = np.random.default_rng(0).permutation(rows)
    seen = 0
    for first in range(0, len(rows), 64):
        seen += len(inputs(order[first : first + 64])["pixel_values"])
    return {"peak": _peak(), "images": seen, "load_seconds": loaded}


def main() -> None:
    """Measure what the argument asks for."""
    asked = json.loads(sys.argv[1])
    what = asked.pop("what")
    torch.set_num_threads(asked.pop("threads", 2))
    work = {"ours": _ours, "peer": _peers, "large": _large_batch, "resident": _resident}[what]
    if "size" in asked:
        asked["size"] = getattr(_sized, asked["size"])
    print(json.dumps(work(**asked)))


if __name__ == "__main__":
    main()
