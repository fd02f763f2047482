"""The benchmark of models and the GPU check, with models small enough for a CPU."""

import json

import pytest
import torch

from simulations import _gpu_parts, _sized
from simulations.benchmarks import models

pytestmark = pytest.mark.slow


def _quiet(_):
    return None


def test_every_row_is_measured():
    rows = [
        *models.step_rows(_quiet, size="TINY", batch=8, steps=1, repeats=1, threads=1),
        *models.large_batch_rows(_quiet, size="TINY", batch=64, micro=8),
        *models.input_rows(_quiet, count=80, image=64),
        *models.resident_rows(_quiet, count=40, image=64),
    ]
    found = {row.metric: row for row in rows}
    assert {
        "step_seconds",
        "peak_bytes",
        "gradcache_peak_bytes",
        "gradcache_loss_difference",
        "epoch_input_seconds",
        "resident_bytes",
    } <= set(found)
    assert all(row.value >= 0 for row in rows)
    assert found["gradcache_loss_difference"].value < 1e-5
    assert found["gradcache_gradient_difference"].value < 1e-5
    assert found["epoch_input_seconds"].ratio > 1
    assert found["resident_bytes"].ratio > 1


def test_the_gpu_check_runs_dry(capsys):
    device = torch.device("cpu")
    found, count = _gpu_parts.clip_part(device, _sized.TINY, 8, 1)
    assert len(found) == 3
    assert count > 0
    losses = [each.loss for each in found.values()]
    assert max(losses) - min(losses) < 0.2  # the same start, another rounding and one more step
    found, count, tokens = _gpu_parts.qwen_part(device, _gpu_parts.QWEN_TINY, 2, 1)
    assert count > 0
    assert tokens == 2 * (_gpu_parts.QWEN_TINY.text + 4 + 2)
    json.dumps({name: vars(each) for name, each in found.items()})


def test_cards_by_name():
    assert _gpu_parts.card_peak("NVIDIA H100 PCIe") == 756e12
    assert _gpu_parts.card_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert _gpu_parts.card_peak("a card of tomorrow") is None
