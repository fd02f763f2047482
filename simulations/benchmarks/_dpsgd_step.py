"""One DP-SGD step on the embedded model's LoRA: ours, and each mode of Opacus."""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.models import load_model
from fedvlm.models.vlm import VLM
from fedvlm.privacy import NoiseSource, SecureNoise, SimulatedNoise
from fedvlm.privacy.dpsgd import (
    DPSGDSettings,
    clipped_gradient_sum,
    private_optimizer,
    release_step,
)
from fedvlm.privacy.losses import BankContrastive
from fedvlm.seeds import ExperimentSeed

BATCH = 64
BANK = 256
CLIP_NORM = 1.0
NOISE_MULTIPLIER = 1.0
OPACUS_MODES = ("hooks", "ew", "functorch", "ghost")

Step = Callable[[], object]


def _inputs() -> tuple[VLM, dict[str, Any], torch.Tensor, torch.Tensor]:
    """Return a fresh model, a batch and a bank; the same at each call."""
    loaded = load_model("embedded")
    attach(loaded.vlm, AdapterSpec("lora"), ExperimentSeed(0))
    rng = torch.Generator().manual_seed(0)
    captions = [f"smiling face with {n} hearts" + " and hands" * (n % 3) for n in range(BATCH)]
    batch = {
        "image": {"pixel_values": torch.randn(BATCH, 320, 3, 3, generator=rng)},
        "text": loaded.processor.texts(captions),
    }
    images, texts = (F.normalize(torch.randn(BANK, 256, generator=rng), dim=-1) for _ in range(2))
    return loaded.vlm, batch, images, texts


def our_step(noise: NoiseSource) -> Step:
    """Return a function that takes one step of this library."""
    from fedvlm.adapters import FlatView

    vlm, batch, images, texts = _inputs()
    view, loss = FlatView(vlm), BankContrastive(images, texts)
    settings = DPSGDSettings(CLIP_NORM, NOISE_MULTIPLIER, 0.1, 1, BATCH, 1e-3)
    mechanism = settings.mechanism(loss)
    optimizer = private_optimizer(view, settings.learning_rate)

    def step() -> None:
        total = clipped_gradient_sum(vlm, view, loss, batch, CLIP_NORM, settings.physical_batch)
        release_step(optimizer, view, total, mechanism, BATCH, noise)

    return step


class _Logits(nn.Module):
    """The same loss as a module of logits (B, 2, M + 1), the shape that Opacus' criteria take."""

    def __init__(self, vlm: VLM, images: torch.Tensor, texts: torch.Tensor) -> None:
        super().__init__()
        self.vlm = vlm
        self.register_buffer("images", images)
        self.register_buffer("texts", texts)

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        image = self.vlm.encode_image({"pixel_values": pixels})
        text = self.vlm.encode_text({"input_ids": ids, "attention_mask": mask})
        own = (image * text).sum(dim=-1, keepdim=True)
        by_image = torch.cat([own, image @ self.texts.T], dim=1)  # pyright: ignore
        by_text = torch.cat([own, text @ self.images.T], dim=1)  # pyright: ignore
        return self.vlm.logit_scale * torch.stack([by_image, by_text], dim=1)


class _Both(nn.Module):
    """Mean cross-entropy of both directions, with the `reduction` that Opacus switches."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = "mean"

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        each = -F.log_softmax(logits, dim=2)[:, :, 0].mean(dim=1) + 0.0 * target
        return each if self.reduction == "none" else each.mean()


def opacus_step(mode: str) -> Step:
    """Return a function that takes one step of Opacus in one of its modes."""
    from opacus.grad_sample import (
        GradSampleModule,
        GradSampleModuleExpandedWeights,
        GradSampleModuleFastGradientClipping,
    )
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    vlm, batch, images, texts = _inputs()
    module = _Logits(vlm, images, texts).train()
    target = torch.zeros(BATCH)
    text = batch["text"]
    inputs = (batch["image"]["pixel_values"], text["input_ids"], text["attention_mask"])
    if mode == "ghost":
        ghost: Any = GradSampleModuleFastGradientClipping
        wrapped: Any = ghost(module, max_grad_norm=CLIP_NORM, use_ghost_clipping=True)
    elif mode == "ew":
        wrapped = GradSampleModuleExpandedWeights(module, loss_reduction="mean")
    else:
        wrapped = GradSampleModule(module, force_functorch=mode == "functorch")
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    make: Any = DPOptimizerFastGradientClipping if mode == "ghost" else DPOptimizer
    optimizer = make(
        torch.optim.Adam(parameters, lr=1e-3, fused=True),  # as ours
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=BATCH,
    )
    criterion: Any = _Both()
    if mode == "ghost":
        criterion = DPLossFastGradientClipping(wrapped, optimizer, criterion)

    def step() -> None:
        optimizer.zero_grad()
        criterion(wrapped(*inputs), target).backward()
        optimizer.step()

    return step


def peak_bytes(step: Step) -> int:
    """Return the most bytes that a step's tensors held at a time, beyond what was held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    kineto: Any = recorded.profiler.kineto_results  # pyright: ignore
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in kineto.events()
        if event.name() == "[memory]"
    )
    return int(np.cumsum([size for _, size in changes]).max(initial=0))


def measure(progress: Callable[[str], None], repeats: int = 15) -> dict[str, tuple[float, int]]:
    """Return CPU seconds and peak bytes of one step, by name: ours with either noise, each mode.

    The steps take turns on one thread, and CPU seconds are counted, which a busy machine
    stretches less than wall time.
    """
    steps: dict[str, Step] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Opacus draws its noise from torch's generator: the like of it is ours from a seed.
        steps["ours"] = our_step(SimulatedNoise(ExperimentSeed(0), "benchmark"))
        steps["ours, secure noise"] = our_step(SecureNoise())
        for step in steps.values():
            step()
        for name in OPACUS_MODES:
            try:
                steps[name] = opacus_step(name)
                steps[name]()
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                steps.pop(name, None)
                progress(f"  opacus {name} does not run on this model: {error}")
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(repeats):
            for name, step in steps.items():
                start = time.process_time()
                step()
                seconds[name].append(time.process_time() - start)
        peaks = {name: peak_bytes(step) for name, step in steps.items()}
    found = {name: (statistics.median(seconds[name]), peaks[name]) for name in steps}
    for name, (took, peak) in found.items():
        progress(f"  {name}: {took:.4f} s, {peak / 2**20:.1f} MiB")
    return found
