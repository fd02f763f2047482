"""A program: the public half of a compiled model, known to both parties and the dealer.

It lists operations on named values, shapes, and the ranges found on the public calibration batch.
It has no weight. Its hash names it: parties with different hashes don't compute together.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from secure.errors import ParameterError
from secure.smpc import _sound
from secure.smpc._attention import SoftmaxParameters
from secure.smpc._norm import NormParameters
from secure.smpc._series import Series
from secure.smpc.errors import PlanMismatchError, WireError

VERSION = 4
_MAX_FILE_BYTES = 1 << 24


@dataclass(frozen=True)
class Operation:
    """Base of every operation.

    Attributes:
        target: Name of the value that it makes.
        path: Where the module is in the model.
    """

    kind: ClassVar[str] = ""
    target: str
    path: str


@dataclass(frozen=True)
class Linear(Operation):
    """x·W (+ b), W of the server's; then `output_bits`, unless None leaves the product as it is."""

    kind: ClassVar[str] = "linear"
    source: str
    weight: str
    bias: str | None
    output_bits: int | None


@dataclass(frozen=True)
class Add(Operation):
    """Sum of two values."""

    kind: ClassVar[str] = "add"
    left: str
    right: str


@dataclass(frozen=True)
class AddConstant(Operation):
    """Sum with a constant of the server's (position embeddings)."""

    kind: ClassVar[str] = "add_constant"
    source: str
    constant: str


@dataclass(frozen=True)
class Prepend(Operation):
    """Tokens of the server's before those of a value (the class token)."""

    kind: ClassVar[str] = "prepend"
    source: str
    constant: str


@dataclass(frozen=True)
class Load(Operation):
    """A constant of the server's as a value of its own, once for each input of the batch."""

    kind: ClassVar[str] = "load"
    constant: str


@dataclass(frozen=True)
class Slice(Operation):
    """Features start to stop of a value."""

    kind: ClassVar[str] = "slice"
    source: str
    start: int
    stop: int


@dataclass(frozen=True)
class Token(Operation):
    """One token of a value."""

    kind: ClassVar[str] = "token"
    source: str
    index: int


@dataclass(frozen=True)
class MeanTokens(Operation):
    """Mean over the tokens from `start` on."""

    kind: ClassVar[str] = "mean_tokens"
    source: str
    start: int
    output_bits: int


@dataclass(frozen=True)
class SelectToken(Operation):
    """The token that a secret one-hot row of the client's points at."""

    kind: ClassVar[str] = "select_token"
    source: str
    selector: str


@dataclass(frozen=True)
class Rescale(Operation):
    """The same value with other fraction bits."""

    kind: ClassVar[str] = "rescale"
    source: str
    bits: int


@dataclass(frozen=True)
class Normalise(Operation):
    """LayerNorm's core; `kept` names the input brought to `keep_bits`, for the residual."""

    kind: ClassVar[str] = "normalise"
    source: str
    parameters: NormParameters
    kept: str | None
    keep_bits: int | None


@dataclass(frozen=True)
class Activation(Operation):
    """An activation as a trigonometric series."""

    kind: ClassVar[str] = "activation"
    source: str
    series: Series


@dataclass(frozen=True)
class Attention(Operation):
    """Multi-head attention from three values to one.

    `mask` names the client's padding, `bias` a constant of the server's that is added to the
    scores, `(heads, queries, keys)`.
    """

    kind: ClassVar[str] = "attention"
    query: str
    key: str
    value: str
    heads: int
    parameters: SoftmaxParameters
    mask: str | None
    bias: str | None


OPERATIONS: dict[str, type[Operation]] = {
    each.kind: each
    for each in (
        Linear,
        Add,
        AddConstant,
        Prepend,
        Load,
        Slice,
        Token,
        MeanTokens,
        SelectToken,
        Rescale,
        Normalise,
        Activation,
        Attention,
    )
}


@dataclass(frozen=True)
class Input:
    """What the client feeds in.

    Attributes:
        name: Name of the value.
        field: Which raw input it is made from (`pixel_values`, `input_ids`, `attention_mask`, …).
        kind: `patches` (an image cut up), `real`, `one_hot` (token ids), `position` (one-hot of
            where a token first appears) or `padding` (0 for a token, −1 for padding).
        raw_shape: Shape of one raw input.
        shape: Shape of the value for one input.
        bits: Its fraction bits.
        patch: Side of a patch, for `patches`.
        token: Token looked for, for `position` (None is the largest id); for `padding`, 0 where
            the first token never is padding.
        limit: Largest magnitude that the calibration allows for, for `patches` and `real`.
        grid: Rows and columns of patches, where a model resizes its positions to them.
        first_position: What a model calls its first token's position.
        pad: Padding token around which a model counts its positions.
    """

    name: str
    field: str
    kind: str
    raw_shape: tuple[int, ...]
    shape: tuple[int, ...]
    bits: int
    patch: int = 0
    token: int | None = None
    limit: float = 0.0
    grid: tuple[int, ...] = ()
    first_position: int = 0
    pad: int | None = None


@dataclass(frozen=True)
class WeightInfo:
    """Shape and fraction bits of a weight of the server's: `(inputs, outputs)` or `(features,)`."""

    shape: tuple[int, ...]
    bits: int

    @property
    def diagonal(self) -> bool:
        """Whether it multiplies feature by feature."""
        return len(self.shape) == 1


@dataclass(frozen=True)
class Program:
    """The public half of a compiled model.

    Attributes:
        family: Class name of the model.
        inputs: What the client feeds in.
        operations: In the order in which they run.
        weights: Shapes of the server's weights.
        constants: Shapes of the server's constants.
        output: Name of the value that is the result.
        output_shape: Its shape for one input.
        output_magnitude: It stays under 2^output_magnitude.
        length: How the output's length is found, for cosines; None where it isn't one vector.
        public_parts: Parts that the client runs in the clear beforehand, in words.
        identifier: 32 random hex digits, drawn when it was compiled. Weights can differ where the
            calibration shows nothing of it; a name of its own keeps two models from sharing
            weight masks, whose reuse would tell the difference of the weights.
    """

    family: str
    inputs: tuple[Input, ...]
    operations: tuple[Operation, ...]
    weights: dict[str, WeightInfo]
    constants: dict[str, tuple[int, ...]]
    output: str
    output_shape: tuple[int, ...]
    output_magnitude: int
    length: NormParameters | None
    public_parts: tuple[str, ...]
    identifier: str

    def __hash__(self) -> int:
        return hash(self.digest)

    def _as_json(self) -> dict:
        value = asdict(self)
        value["version"] = VERSION
        value["operations"] = [{"kind": op.kind, **asdict(op)} for op in self.operations]
        return value

    def to_json(self) -> str:
        """Return the program as JSON, with its digest; equal programs give equal text."""
        return _canonical({**self._as_json(), "sha256": self.digest})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the JSON without this: the program's name."""
        return hashlib.sha256(_canonical(self._as_json()).encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> "Program":
        """Read a program.

        Raises:
            WireError: Not a program of this version, damaged, or out of the bounds of what any
                model compiles to.
        """
        try:
            value = json.loads(text)
            if value.pop("version") != VERSION:
                raise WireError(f"the program is not of version {VERSION}; compile it again")
            stated = value.pop("sha256")
            program = _read(cls, value)
            whole = stated == program.digest
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise WireError("this is not a program of private inference") from error
        if not whole:
            raise WireError("the program's file is damaged; copy it from its owner again")
        wrong = _sound.problem(program)
        if wrong is not None:
            raise WireError(f"the program can't be run: {wrong}")
        return program

    def require(self, digest: str) -> None:
        """Check the other side's program by its hash.

        Raises:
            PlanMismatchError: The hashes differ.
        """
        if digest != self.digest:
            # The other side's text goes to a log or a terminal: letters and digits only.
            other = "".join(c if c.isalnum() else "?" for c in digest[:12])
            raise PlanMismatchError(
                f"the two sides hold different programs ({self.digest[:12]} and {other}); "
                "hand the client the server's program file again"
            )


def read_program(path: Path) -> Program:
    """Read a program's file.

    Raises:
        ParameterError: No such file, unreadable, or far too large.
        WireError: Not a program of this version, or damaged.
    """
    if not path.is_file():
        raise ParameterError(f"the program's file {path} is missing")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ParameterError(f"can't read the program's file {path}: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ParameterError(f"the program's file {path} is too large")
    try:
        return Program.from_json(data.decode(errors="replace"))
    except WireError as error:
        raise WireError(f"{path}: {error}") from error


def _canonical(value: dict) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _read(kind: Any, value: Any) -> Any:
    """Build what a type annotation says from JSON; anything else is a ValueError."""
    if kind is Operation:
        value = dict(value)
        kind = OPERATIONS[value.pop("kind")]
    if is_dataclass(kind):
        every = get_type_hints(kind)
        hints = {each.name: every[each.name] for each in fields(kind)}
        if not isinstance(value, dict) or set(value) != set(hints):
            raise ValueError("unknown or missing field")
        return kind(**{name: _read(hints[name], value[name]) for name in hints})  # pyright: ignore
    shape, parts = get_origin(kind), get_args(kind)
    if shape is tuple and isinstance(value, list):
        return tuple(_read(parts[0], each) for each in value)
    if shape is dict and isinstance(value, dict):
        return {name: _read(parts[1], each) for name, each in value.items()}
    if shape is UnionType:
        return None if value is None else _read(parts[0], value)
    if type(value) is not kind:
        raise ValueError("a field of another type")
    return value


def sources(op: Operation) -> list[str]:
    """Return the names of the values that an operation reads."""
    names = ("source", "left", "right", "query", "key", "value", "selector", "mask")
    found = (getattr(op, name, None) for name in names)
    return [name for name in found if name is not None]


def weight_count(program: Program) -> int:
    """Return the number of weights that are multiplied with secrets."""
    return sum(int(torch.Size(info.shape).numel()) for info in program.weights.values())


def meta_weights(program: Program) -> dict[str, Tensor]:
    """Return weights without content, for counting."""
    return {
        name: torch.empty(info.shape, dtype=torch.int64, device="meta")
        for name, info in program.weights.items()
    }
