"""The parts of the GPU check: what each builds, trains and measures."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from simulations import _sized

# Dense bfloat16 peaks as their makers state them, in 10^12 operations a second; the longer names
# first. A card that isn't here gets no fraction, unless the peak is given.
PEAKS = (
    ("H200", 989.0), ("H100 NVL", 835.0), ("H100 PCIe", 756.0), ("H100", 989.0), ("B200", 2250.0),
    ("A100", 312.0), ("L40S", 362.0), ("L40", 181.0), ("L4", 121.0), ("A10", 125.0),
    ("RTX 4090", 165.0), ("RTX 3090", 71.0),
)  # fmt: skip


def card_peak(name: str) -> float | None:
    """Return a card's bf16 peak in operations a second; None where it isn't known."""
    return next((peak * 1e12 for card, peak in PEAKS if card in name), None)


@dataclass(frozen=True)
class Measured:
    """One way to train, measured.

    Attributes:
        step_seconds: Median of the steps.
        peak_bytes: The device's peak during them; None on a CPU.
        loss: Of the last step.
    """

    step_seconds: float
    peak_bytes: int | None
    loss: float


@contextlib.contextmanager
def _peak(device: torch.device, found: dict[str, int | None]) -> Iterator[None]:
    found["bytes"] = None
    if device.type != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield
    found["bytes"] = torch.cuda.max_memory_allocated(device)


def _timed(step: Callable[[], float], device: torch.device, steps: int) -> Measured:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()  # kernels are chosen and memory is taken in the first
    found: dict[str, int | None] = {}
    seconds, loss = [], float("nan")
    with _peak(device, found):
        for _ in range(steps):
            wait()
            start = time.perf_counter()
            loss = step()
            wait()
            seconds.append(time.perf_counter() - start)
    return Measured(float(np.median(seconds)), found["bytes"], loss)


def _free(device: torch.device) -> None:
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def operations(step: Callable[[], object]) -> int:
    """Count a step's floating-point operations in matrix products, a multiplication as two."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def clip_part(
    device: torch.device, size: _sized.ClipSize, batch: int, steps: int
) -> tuple[dict[str, Measured], int]:
    """Train LoRA on a CLIP with a bfloat16 base, by this library and by the plain loop.

    Returns:
        What was measured, by name, and the plain step's operations.
    """
    from peft import LoraConfig, get_peft_model

    from fedvlm.adapters import AdapterSpec, attach
    from fedvlm.models.placement import place
    from fedvlm.models.vlm import VLM
    from fedvlm.seeds import ExperimentSeed
    from fedvlm.training import LocalSettings
    from fedvlm.training.contrastive import loss_gradients
    from fedvlm.training.lean import lean

    pairs, rows = _sized.random_pairs(size, batch), np.arange(batch)
    found: dict[str, Measured] = {}
    for name, micro in (("fedvlm", 0), (f"fedvlm, {batch // 4} pairs at a time", batch // 4)):
        vlm = VLM(_sized.clip_of(size))
        view = attach(vlm, AdapterSpec(rank=16, alpha=32), ExperimentSeed(0))
        place(vlm, device, torch.bfloat16)
        optimizer = torch.optim.AdamW(view.parameters, lr=1e-4, weight_decay=0.0, foreach=True)
        chosen = LocalSettings(batch_size=batch, micro_batch=micro)
        vlm.train()

        def step(vlm=vlm, optimizer=optimizer, chosen=chosen) -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_gradients(vlm, pairs, rows, chosen)
            optimizer.step()
            return loss

        with lean(vlm, always=True):
            found[name] = _timed(step, device, steps)
        del vlm, view, optimizer, step
        _free(device)
    model: Any = _sized.clip_of(size, torch.bfloat16).to(device)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=list(_sized.TARGETS))
    model = get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    pixels = pairs.images(rows)["pixel_values"]
    captions = pairs.captions(rows)

    def plain() -> float:
        inputs = {key: value.to(device) for key, value in captions.items()}
        optimizer.zero_grad()
        out = model(pixel_values=pixels.to(device, torch.bfloat16), **inputs, return_loss=True)
        out.loss.backward()
        optimizer.step()
        return out.loss.item()

    found["transformers + peft"] = _timed(plain, device, steps)
    return found, operations(plain)


@dataclass(frozen=True)
class LanguageSize:
    """A Qwen-VL-like model's size.

    Attributes:
        width: Of the language model.
        inner: Of its MLPs.
        layers: Of the language model.
        heads: Query and key heads.
        vocabulary: Rows of its embedding.
        vision: Width, MLP width, layers and heads of the image tower.
        grid: Patches on a side of an image, even.
        text: Tokens of prompt and answer.
    """

    width: int
    inner: int
    layers: int
    heads: tuple[int, int]
    vocabulary: int
    vision: tuple[int, int, int, int]
    grid: int
    text: int


QWEN_2B = LanguageSize(1536, 8960, 28, (12, 2), 151_936, (1280, 3420, 32, 16), 32, 128)
QWEN_TINY = LanguageSize(32, 64, 2, (4, 2), 128, (32, 64, 2, 4), 4, 12)
_SIDE, _MERGE = 14, 2


def qwen_of(size: LanguageSize, device: torch.device) -> Any:
    """Return a Qwen2.5-VL of a size with random weights in bfloat16, made on the device."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    width, inner, layers, heads = size.vision
    head = size.width // size.heads[0]
    quarter = head // 8
    sections = [head // 2 - 2 * quarter, quarter, quarter]
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": size.vocabulary,
            "hidden_size": size.width,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads[0],
            "num_key_value_heads": size.heads[1],
            "rope_scaling": {"rope_type": "default", "mrope_section": sections},
        },
        vision_config={
            "depth": layers,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_heads": heads,
            "out_hidden_size": size.width,
            "patch_size": _SIDE,
            "spatial_merge_size": _MERGE,
            "window_size": 112,
            "fullatt_block_indexes": [layers - 1],
        },
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            return Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)


def qwen_inputs(size: LanguageSize, batch: int, device: torch.device) -> dict[str, Tensor]:
    """Return a batch of one image, a prompt and an answer each; the loss is the answer's."""
    rng = torch.Generator().manual_seed(1)
    seen = (size.grid // _MERGE) ** 2
    text = torch.randint(7, size.vocabulary, (batch, size.text), generator=rng)
    image = torch.tensor([3, *[5] * seen, 4]).expand(batch, -1)
    ids = torch.cat([text[:, :2], image, text[:, 2:]], dim=1)
    labels = ids.clone()
    labels[:, : -size.text // 4] = -100
    patches = torch.randn(batch * size.grid**2, 3 * 2 * _SIDE * _SIDE, generator=rng)
    return {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "mm_token_type_ids": (ids == 5).long().to(device),
        "labels": labels.to(device),
        "pixel_values": patches.to(device, torch.bfloat16),
        "image_grid_thw": torch.tensor([[1, size.grid, size.grid]] * batch).to(device),
    }


def qwen_part(
    device: torch.device, size: LanguageSize, batch: int, steps: int
) -> tuple[dict[str, Measured], int, int]:
    """Train LoRA on the language model of a Qwen2.5-VL, with this library's layers and without.

    Returns:
        What was measured, the plain step's operations, and the tokens of a step.
    """
    from peft import LoraConfig, get_peft_model

    from fedvlm.training.lean import lean

    config = LoraConfig(
        r=16, lora_alpha=32, target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"
    )
    model: Any = get_peft_model(qwen_of(size, device), config).train()
    inputs = qwen_inputs(size, batch, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    found = {"transformers + peft": _timed(step, device, steps)}
    count = operations(step)
    with lean(model, always=True):
        found["fedvlm"] = _timed(step, device, steps)
    return found, count, int(inputs["input_ids"].numel())
