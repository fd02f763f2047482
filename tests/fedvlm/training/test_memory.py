"""Out of memory is one line that says what to lower, and by how much."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedvlm.adapters import AdapterSpec, attach
from fedvlm.models import load_model
from fedvlm.seeds import ExperimentSeed
from fedvlm.training import LocalSettings, encode_pairs, train_adapter
from fedvlm.training.memory import DeviceMemoryError, advice, explained, largest_piece

CPU = torch.device("cpu")


@given(st.integers(0, 10**10), st.integers(1, 10**9), st.integers(1, 10**12), st.integers(1, 100))
def test_what_is_advised_fits_and_twice_as_much_would_not(rest, each, there, small):
    peaks = [(rows, rest + each * rows) for rows in (small, 2 * small)]
    fits = largest_piece(peaks[0], peaks[1], there)
    assert fits == 0 or rest + each * fits <= there
    assert rest + each * (2 * fits or 1) > 0.84 * there


def test_the_line_names_a_size_that_was_measured():
    peaks = {1: 10**9 + 10**8, 2: 10**9 + 2 * 10**8}

    def peak(work):
        work()
        return peaks[tried[-1]]

    tried = []
    text = advice(tried.append, 64, peak, 4 * 10**9)
    assert tried == [1, 2]
    assert "micro_batch = 16 " in text  # 24 rows of 0.1 GB beside 1 GB, in 85 % of 4
    assert "100.0 MB" in text


def test_without_a_meter_it_says_half():
    assert "micro_batch = 32" in advice(lambda _: None, 64, None, 0)
    assert "checkpointing" in advice(lambda _: None, 1, None, 0)


def test_steps_that_are_too_large_even_alone():
    def peak(work):
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert "micro_batch = 4" in advice(lambda _: None, 8, peak, 10**9)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
)
def test_every_allocator_s_error_becomes_one_line(error):
    with pytest.raises(DeviceMemoryError) as found, explained(CPU, 64):
        raise error
    assert str(found.value).startswith("out of memory on cpu, with 64 pairs held at a time: set ")
    assert "\n" not in str(found.value)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), explained(CPU, 4):
        raise RuntimeError("a shape doesn't fit")


def test_training_says_so(shapes, tiny_clip_folder, monkeypatch):
    model = load_model(str(tiny_clip_folder))
    view = attach(model.vlm, AdapterSpec(rank=2), ExperimentSeed(0))
    pairs = encode_pairs(shapes, model, lambda *_: None)
    monkeypatch.setattr(
        type(model.vlm), "encode_image", lambda *_: (_ for _ in ()).throw(MemoryError())
    )
    with pytest.raises(DeviceMemoryError, match="18 pairs held at a time: set micro_batch = 9"):
        train_adapter(
            model.vlm, view, pairs, np.arange(54), LocalSettings(batch_size=18), rng=_rng()
        )


def _rng():
    return np.random.default_rng(0)
