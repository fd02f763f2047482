"""What the model itself says, and how a compiled program is held against it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secure.errors import ParameterError
from secure.smpc._execute import Owner
from secure.smpc._fixed_point import evaluate
from secure.smpc.errors import AccuracyError, UnsupportedModuleError
from secure.smpc.program import Program

#: The mapping is checked against the model itself; float32 models differ by about 1e-5.
MAPPING_TOLERANCE = 1e-3
#: Fixed point against the model, of the output's largest magnitude.
FIXED_POINT_TOLERANCE = 5e-3
_LEAST_SCALE = 2.0**-6
_RAISED = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError)


def single_precision(model: nn.Module) -> nn.Module:
    """Return the model, or a float32 copy where it has weights of half precision."""
    halves = (torch.float16, torch.bfloat16)
    if any(each.dtype in halves for each in model.state_dict().values()):
        return copy.deepcopy(model).float()
    return model


def reference(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return what the model itself gives, by the names that transformers uses.

    Raises:
        ParameterError: The model can't run the batch.
        UnsupportedModuleError: It gives no output that is known here.
    """
    tower: Any = model
    if all(hasattr(model, name) for name in ("get_image_features", "get_text_features")):
        name = "get_image_features" if "pixel_values" in batch else "get_text_features"
        tower = getattr(model, name)
    try:
        found = tower(*batch.values()) if "features" in batch else tower(**batch)
    except _RAISED as error:
        raise ParameterError(
            f"the model itself can't run the calibration ({', '.join(batch)}): {_first(error)}"
        ) from error
    if isinstance(found, Tensor):
        return found
    for name in ("logits", "image_embeds", "text_embeds", "pooler_output", "last_hidden_state"):
        value = getattr(found, name, None)
        if isinstance(value, Tensor):
            return value
    raise UnsupportedModuleError("", type(model).__name__, "gives no output known here")


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def unfollowed(model: nn.Module, error: Exception) -> UnsupportedModuleError:
    """Return what to raise where a mapping fails on a batch that the model itself can run."""
    return UnsupportedModuleError(
        "", type(model).__name__, f"the mapping can't follow this batch: {_first(error)}"
    )


def _error(expected: Tensor, found: Tensor, batch: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return the largest difference and the largest magnitude; rows of padding don't count."""
    expected, found = expected.to(torch.float64), found.to(torch.float64)
    mask = batch.get("attention_mask")
    if mask is not None and expected.dim() == 3 and mask.shape == expected.shape[:2]:
        keep = mask.bool()
        expected, found = expected[keep], found[keep]
    return float((expected - found).abs().max()), float(expected.abs().max())


def compare(model: nn.Module, batch: Mapping[str, Tensor], expected: Tensor, found: Tensor) -> None:
    """Hold the mapping in float64 against the model.

    Raises:
        UnsupportedModuleError: They differ.
    """
    name = type(model).__name__
    if expected.shape != found.shape:
        raise UnsupportedModuleError(
            "", name, f"the mapping gives {tuple(found.shape)}, the model {tuple(expected.shape)}"
        )
    largest, scale = _error(expected, found, batch)
    if not largest <= MAPPING_TOLERANCE * max(1e-6, scale):
        raise UnsupportedModuleError(
            "",
            name,
            f"the mapping is off by {largest / max(1e-6, scale):.2g} of the model's output: it "
            "has parts that the mapping doesn't know",
        )


def check_fixed_point(
    program: Program, owner: Owner, batch: Mapping[str, Tensor], expected: Tensor
) -> float:
    """Run a program's fixed-point arithmetic and hold it against the model.

    Args:
        program: The program.
        owner: The server's secrets.
        batch: Inputs, with every field that the program takes.
        expected: What the model gives for them.

    Returns:
        The largest difference.

    Raises:
        AccuracyError: It's over `FIXED_POINT_TOLERANCE` of the output's largest magnitude.
    """
    largest, scale = _error(expected, evaluate(program, owner, batch), batch)
    if not largest <= FIXED_POINT_TOLERANCE * max(_LEAST_SCALE, scale):
        raise AccuracyError(
            f"in fixed point the program is off by {largest:.3g} where the model's output goes up "
            f"to {scale:.3g}; more than {FIXED_POINT_TOLERANCE:g} of that is refused. Values far "
            "apart in one layer leave too few bits for the small ones"
        )
    return largest
