"""What every program satisfies, whoever wrote its file: sizes and numbers that can be run.

A program comes from the other side, so nothing in it may make a reader allocate, loop or raise
without bound. Here are the bounds of its numbers; that its operations fit together is found by
running it on shapes (`secure.smpc._query.requirements`), before anything secret meets it.
"""

import math
from dataclasses import fields, is_dataclass
from typing import Any

MAX_OPERATIONS = 20_000
MAX_TOKENS = 4096
_MAX_WORDS = 1 << 31
_MAX_SIZE = 1 << 31
_MAX_TEXT = 512
_MAX_FLOAT = 1e30
_MAX_PREPENDED = 8
#: Least and most of an integer field, by its name; the rest is within ±2^31.
_RANGES = {
    "bits": (0, 62),
    "index_bits": (1, 16),
    "squarings": (0, 16),
    "heads": (1, 1024),
    "keys": (1, MAX_TOKENS),
    "width": (1, 1 << 24),
    "gains": (-64, 64),
    "patch": (0, 1 << 12),
}
_TOP_OF_EXP = (0, 20)
_BITS = (-128, 128)


def problem(program: Any) -> str | None:
    """Return what keeps a program from being run, in words; None where nothing does."""
    try:
        _walk(program, "program")
        _check_shapes(program)
        for spec in program.inputs:
            _check_input(spec)
    except ValueError as error:
        return str(error)
    return None


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _walk(value: Any, name: str) -> None:
    """Check every number and text, wherever it is."""
    if is_dataclass(value):
        for each in fields(value):
            part = getattr(value, each.name)
            if type(value).__name__ == "SoftmaxParameters" and each.name == "top_bits":
                _require(_TOP_OF_EXP[0] <= part <= _TOP_OF_EXP[1], "top_bits is out of range")
            _walk(part, each.name)
    elif isinstance(value, dict):
        for key, part in value.items():
            _walk(key, name)
            _walk(part, name)
    elif isinstance(value, tuple):
        for part in value:
            _walk(part, name)
    elif isinstance(value, str):
        # Names go to logs and terminals.
        _require(len(value) <= _MAX_TEXT and value.isprintable(), f"{name} is no plain text")
    elif isinstance(value, float):
        _require(math.isfinite(value) and abs(value) <= _MAX_FLOAT, f"{name} is out of range")
    elif isinstance(value, int) and not isinstance(value, bool):
        usual = _BITS if name.endswith("_bits") else (-_MAX_SIZE, _MAX_SIZE)
        least, most = _RANGES.get(name, usual)
        _require(least <= value <= most, f"{name} is out of range")


def _size(shape: tuple[int, ...], name: str, dimensions: tuple[int, ...]) -> int:
    _require(len(shape) in dimensions, f"{name} has {len(shape)} dimensions")
    _require(all(side >= 1 for side in shape), f"{name} is empty")
    return math.prod(shape)


def _check_shapes(program: Any) -> None:
    _require(len(program.operations) <= MAX_OPERATIONS, "there are too many operations")
    prepended = sum(op.kind == "prepend" for op in program.operations)
    _require(prepended <= _MAX_PREPENDED, "there are too many operations that prepend")
    words = sum(_size(info.shape, "a weight", (1, 2)) for info in program.weights.values())
    for shape in program.constants.values():
        words += _size(shape, "a constant", (1, 2, 3))
        _require(max(shape[:-1], default=1) <= MAX_TOKENS, "a constant has too many tokens")
    _require(words <= _MAX_WORDS, "the weights are too large")
    _require(_size(program.output_shape, "the output", (1, 2, 3)) <= _MAX_WORDS, "output too large")
    if program.length is not None:
        fits = program.length.width == program.output_shape[-1]
        _require(fits, "the length is of another width than the output")
    tables = [getattr(op, "parameters", None) for op in program.operations]
    for each in [*tables, program.length]:
        table = getattr(each, "table", None)
        if table is not None:
            _require(table.divisor > 0 and table.floor > 0 and table.offset >= 0, "a table's range")


def _check_input(spec: Any) -> None:
    for shape in (spec.raw_shape, spec.shape):
        words = _size(shape, spec.field, (1, 2, 3))
        _require(words <= _MAX_WORDS, f"{spec.field} is too large")
    _require(max(spec.shape[:-1], default=1) <= MAX_TOKENS, f"{spec.field} has too many tokens")
    _require(spec.limit >= 0, f"{spec.field} has a negative limit")
    if spec.kind == "patches":
        _require(len(spec.raw_shape) == 3 and spec.patch > 0, f"{spec.field} has no patches")
        channels, *sides = spec.raw_shape
        _require(not any(side % spec.patch for side in sides), f"{spec.field} isn't cut evenly")
        expected = (math.prod(sides) // spec.patch**2, channels * spec.patch**2)
    elif spec.kind == "one_hot":
        expected = (*spec.raw_shape, spec.shape[-1])
    else:
        known = spec.kind in ("real", "position", "padding")
        _require(known, f"{spec.field} is of an unknown kind")
        expected = spec.raw_shape
    _require(spec.shape == expected, f"{spec.field} has shapes that don't belong together")
