"""The client's input: made into what a program asks for, and refused where it says more than that.

A field that a program takes no notice of must say what the program takes for granted. Anything
else would give a wrong result without a sign of it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from secure.errors import ParameterError
from secure.smpc.program import Input, Program

_TEXT = {"input_ids", "inputs_embeds"}


def patches(images: Tensor, side: int) -> Tensor:
    """Cut images `(B, C, H, W)` into patches `(B, H·W/side², C·side²)`."""
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side * side)


def prepare(spec: Input, raw: Mapping[str, Tensor]) -> Tensor:
    """Turn a raw input of the client's into the value that the program asks for.

    Args:
        spec: What the program asks for.
        raw: Raw inputs by field, each of shape `(batch, *spec.raw_shape)`.

    Returns:
        Shape `(batch, *spec.shape)`: float64, or int64 for one-hot rows.

    Raises:
        ParameterError: A missing field, wrong size, or a value out of range.
    """
    if spec.field not in raw:
        raise ParameterError(
            f"this program takes {spec.field!r}, got {', '.join(raw) or 'nothing'}"
        )
    value = raw[spec.field]
    if tuple(value.shape[1:]) != spec.raw_shape:
        raise ParameterError(
            f"{spec.field} has shape {tuple(value.shape[1:])} an input, "
            f"the program was compiled for {spec.raw_shape}"
        )
    if spec.kind in ("patches", "real"):
        value = value.to(torch.float64)
        if not bool((value.abs() <= spec.limit).all()):
            raise ParameterError(
                f"{spec.field} is not finite or beyond ±{spec.limit:g}, the range of the "
                "calibration; normalise it as the model's processor does"
            )
        return patches(value, spec.patch) if spec.kind == "patches" else value
    if value.is_floating_point():
        raise ParameterError(f"{spec.field} holds integers")
    if spec.kind == "one_hot":
        size = spec.shape[-1]
        if value.numel() and not (int(value.min()) >= 0 and int(value.max()) < size):
            raise ParameterError(f"a token id is outside [0, {size})")
        return torch.nn.functional.one_hot(value.to(torch.int64), size)
    if spec.kind == "padding":
        if not bool(((value == 0) | (value == 1)).all()) or not bool(value.any(-1).all()):
            raise ParameterError(f"{spec.field} is 1 for tokens and 0 for padding, never 0 alone")
        if spec.token is not None and bool((value[..., spec.token] == 0).any()):
            raise ParameterError(
                f"{spec.field} hides the first token, which the calibration never did; "
                "pad behind the text"
            )
        return value.to(torch.int64) - 1
    target = value.amax(-1, keepdim=True) if spec.token is None else spec.token
    return torch.nn.functional.one_hot(
        (value == target).to(torch.int64).argmax(-1), value.shape[-1]
    )


def require_mapped(program: Program, raw: Mapping[str, Tensor]) -> None:
    """Refuse whatever the fields of an input say that the program takes no notice of.

    Args:
        program: The program.
        raw: Raw inputs by field.

    Raises:
        ParameterError: A field is unknown to the program and says something of its own: padding
            that it doesn't take, a hidden token before a caption's end, a second segment, other
            positions, another grid of patches.
    """
    taken = {spec.field: spec for spec in program.inputs}
    text = bool(taken.keys() & _TEXT)
    for field, value in raw.items():
        if field in taken or (text and field == "input_ids"):
            continue
        check = _CHECKS.get(field)
        if check is None:
            raise ParameterError(
                f"this program takes no notice of {field!r}; it takes {', '.join(taken)}: leave "
                f"{field!r} out if it changes nothing"
            )
        check(program, raw, value)
    for spec in program.inputs:
        if spec.grid and "spatial_shapes" not in raw:
            raise ParameterError(
                "spatial_shapes is missing: this program is for images of "
                f"{spec.grid[0]} × {spec.grid[1]} patches only"
            )
        if spec.pad is not None and "input_ids" in raw:
            _check_pad(spec.pad, raw)


def _check_mask(program: Program, raw: Mapping[str, Tensor], mask: Tensor) -> None:
    kinds = {spec.kind: spec for spec in program.inputs}
    if bool((mask == 1).all()):
        return
    if "position" in kinds and "input_ids" in raw and mask.shape == raw["input_ids"].shape:
        # A causal mask hides what comes after the token that is looked for, and that alone.
        ends = prepare(kinds["position"], raw).argmax(-1, keepdim=True)
        if not bool(((mask == 0) & (torch.arange(mask.shape[-1]) <= ends)).any()):
            return
        raise ParameterError("attention_mask hides a token that comes before the caption's end")
    if "position" in kinds:
        raise ParameterError("attention_mask is of another shape than input_ids")
    raise ParameterError(
        "attention_mask has padding, which this program would take for tokens; compile it "
        "with a calibration batch whose attention_mask has some"
    )


def _check_segments(program: Program, raw: Mapping[str, Tensor], segments: Tensor) -> None:
    if bool((segments != 0).any()):
        raise ParameterError("token_type_ids has a second segment; programs take the first alone")


def _check_positions(program: Program, raw: Mapping[str, Tensor], positions: Tensor) -> None:
    first = max((spec.first_position for spec in program.inputs), default=0)
    if not bool((positions == first + torch.arange(positions.shape[-1])).all()):
        raise ParameterError(
            f"position_ids are other than {first}, {first + 1}, …, which the program takes for "
            "granted"
        )


def _check_pixel_mask(program: Program, raw: Mapping[str, Tensor], mask: Tensor) -> None:
    if not bool((mask == 1).all()):
        raise ParameterError(
            "pixel_attention_mask hides patches; programs take images whose patches all count"
        )


def _check_grid(program: Program, raw: Mapping[str, Tensor], shapes: Tensor) -> None:
    grid = next((spec.grid for spec in program.inputs if spec.grid), None)
    if grid is None:
        raise ParameterError("this program takes no notice of 'spatial_shapes'")
    if not bool((shapes == torch.tensor(grid)).all()):
        raise ParameterError(
            f"spatial_shapes are other than the {grid[0]} × {grid[1]} that the program was "
            "compiled for; compile one program a grid"
        )


_CHECKS = {
    "attention_mask": _check_mask,
    "token_type_ids": _check_segments,
    "position_ids": _check_positions,
    "pixel_attention_mask": _check_pixel_mask,
    "spatial_shapes": _check_grid,
}


def _check_pad(pad: int, raw: Mapping[str, Tensor]) -> None:
    """Check where the padding token stands: positions of such models are counted around it."""
    padded = raw["input_ids"] == pad
    if bool((padded[..., :-1] & ~padded[..., 1:]).any()):
        raise ParameterError(f"the padding token {pad} stands before others; pad behind the text")
    mask = raw.get("attention_mask")
    if bool((padded if mask is None else padded & (mask != 0)).any()):
        raise ParameterError(f"the padding token {pad} isn't hidden by an attention_mask")
