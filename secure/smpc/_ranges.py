"""How well a calibration fixes the ranges: each sample held against the ranges of the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

#: With fewer samples, that none of them stands out says little: of n inputs like them none was out
#: of range, so up to 3/n of those to come may be (at 95 % confidence).
FEW_SAMPLES = 16


@dataclass(frozen=True)
class Range:
    """The extremes of one value, by sample of the calibration.

    Attributes:
        path: Path of the module.
        what: What is bounded, in words.
        extremes: float64, shape `(batch,)`, positive.
        margin: How many times the largest of them the protocol allows for.
    """

    path: str
    what: str
    extremes: Tensor
    margin: float


def by_sample(values: Tensor) -> Tensor:
    """Return the largest magnitude of each sample: `(batch, ...)` to `(batch,)`."""
    return values.abs().flatten(1).amax(-1) if values.dim() > 1 else values.abs()


def outliers(ranges: list[Range]) -> dict[int, str]:
    """Return the samples that the others' ranges would not have covered, and where.

    Args:
        ranges: Every range of a program, all with the same number of samples.
    """
    found: dict[int, str] = {}
    for each in ranges:
        if len(each.extremes) < 2:
            continue
        (first, second), where = torch.topk(each.extremes, 2)
        if float(first) > each.margin * float(second):
            found.setdefault(int(where[0]), f"{each.path} ({each.what})")
    return found


def furthest(ranges: list[Range], samples: int, count: int) -> list[int]:
    """Return the samples that hold the most extremes, at most `count`, in order."""
    held = torch.zeros(samples)
    for each in ranges:
        held[int(each.extremes.argmax())] += 1
    return sorted(int(i) for i in torch.topk(held, min(count, samples)).indices)


def warning(ranges: list[Range], samples: int) -> str | None:
    """Return what to say about a calibration that fixes its ranges badly, or None.

    Args:
        ranges: Every range of a program.
        samples: How many samples the calibration has.
    """
    alone = outliers(ranges)
    parts = []
    if alone:
        sample, where = next(iter(alone.items()))
        parts.append(
            f"{len(alone)} of {samples} samples would have been out of the range that the others "
            f"give (sample {sample} at {where})"
        )
    if samples < FEW_SAMPLES:
        parts.append(
            f"it has {samples} sample{'s' if samples > 1 else ''}, which leaves open whether up to "
            f"{min(100, round(300 / samples))} % of inputs like them are out of range"
        )
    if not parts:
        return None
    return (
        f"the calibration is thin: {'; '.join(parts)}. Out of range a result is wrong without a "
        f"sign of it: calibrate with more, and varied, inputs ({FEW_SAMPLES} at least, better 100)"
    )
