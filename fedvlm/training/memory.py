"""Out of memory on the device: one line that says what to lower, and by how much.

What a step holds grows with the pairs whose activations are held at a time. Two small steps tell
how much a pair takes and how much a step takes before any: the rest is arithmetic.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fedvlm.errors import FedVLMError

_SPARE = 0.85  # of what is there: allocators don't pack to the last byte
_CPU = "DefaultCPUAllocator: can't allocate memory"
_UNITS = ((1e9, "GB"), (1e6, "MB"))

Meter = Callable[[Callable[[], object]], int]
"""Runs a piece of work and returns the device's peak in bytes meanwhile."""


class DeviceMemoryError(FedVLMError):
    """The device's memory doesn't hold a step; the message says what to lower, and by how much."""

    exit_code = 2


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that a device's memory is full."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and (_CPU in str(error) or "out of memory" in str(error))
    )


def size_text(count: float) -> str:
    """Return a number of bytes as people write it."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.0f} kB"


def largest_piece(small: tuple[int, int], large: tuple[int, int], there: int) -> int:
    """Return how many rows fit, from the peaks of two small steps.

    Args:
        small: Rows and peak bytes of a step.
        large: The same of a larger one.
        there: Bytes that the device has for this process.

    Returns:
        The largest power of two of rows whose peak is within `_SPARE` of what is there; 0 where
        not one row fits.

    Example:
        >>> largest_piece((2, 120), (4, 140), 1000)  # 100 at rest, 10 a row: 75 rows in 850
        64
    """
    each = max(1e-9, (large[1] - small[1]) / (large[0] - small[0]))
    rows = int((there * _SPARE - (small[1] - each * small[0])) / each)
    return 1 << (rows.bit_length() - 1) if rows >= 1 else 0


def _card_peak(device: torch.device) -> Meter:
    def peak(work: Callable[[], object]) -> int:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)

    return peak


def _room(device: torch.device) -> int:
    """Return the bytes that a card has for this process: what it holds and what is free."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def advice(step: Callable[[int], object], rows: int, peak: Meter | None, there: int) -> str:
    """Say what to lower so that a step fits, by measuring small ones.

    Args:
        step: Does a step's forward and backward pass with as many rows at a time as it is given.
        rows: Rows at a time that didn't fit.
        peak: Measures; None where the device can't be asked.
        there: Bytes that the device has.
    """
    if peak is not None and rows >= 4:
        try:
            small, large = (1, peak(lambda: step(1))), (2, peak(lambda: step(2)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            fits = largest_piece(small, large, there)
            if 0 < fits < rows:
                each = size_text(large[1] - small[1])
                return f"set micro_batch = {fits} (a pair takes about {each}; the gradients stay)"
    if rows > 1:
        # Not measured, so by halves: the least that is sure to be less.
        return (
            f"set micro_batch = {max(1, rows // 2)}, half of it, and half again if need be "
            "(the gradients stay)"
        )
    return "set checkpointing = true, dtype = bfloat16, or take a smaller model"


@contextmanager
def explained(
    device: torch.device, rows: int, step: Callable[[int], object] | None = None
) -> Iterator[None]:
    """Turn a full device within this block into one line that says what to do.

    Args:
        device: Where the block computes.
        rows: Rows whose activations a step holds at a time.
        step: As for `advice`; None where nothing is tried.

    Raises:
        DeviceMemoryError: The device's memory was full.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # Without its traceback, whose frames hold the step's tensors.
        error.__traceback__ = None
    peak, there = None, 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        peak, there = _card_peak(device), _room(device)
    told = advice(step or (lambda _: None), rows, peak if step else None, there)
    known = f", which has {size_text(there)} for this process" if there else ""
    raise DeviceMemoryError(
        f"out of memory on {device}{known}, with {rows} pairs held at a time: {told}"
    )
