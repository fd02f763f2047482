"""A compiled model: its public program, its secret weights, and what can be said beforehand."""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from secure.errors import ParameterError
from secure.random import SecureRandom
from secure.smpc import _cost, _leakage, _query, _ranges, _ring
from secure.smpc._arrays import read_archive, read_array
from secure.smpc._builder import Builder, Value
from secure.smpc._domains import MARGIN, norm_parameters
from secure.smpc._execute import Owner
from secure.smpc._inputs import require_mapped
from secure.smpc._reference import (
    check_fixed_point,
    compare,
    reference,
    single_precision,
    unfollowed,
)
from secure.smpc._towers import trace
from secure.smpc.errors import (
    AccuracyError,
    CalibrationError,
    CalibrationWarning,
    PlanMismatchError,
)
from secure.smpc.pair import infer
from secure.smpc.parcels import write_secret
from secure.smpc.program import Program, read_program

PUBLIC, PROGRAM_FILE = "public", "program.json"
WEIGHTS_FILE, EMBEDDING_FILE = "weights.npz", "embedding.npy"

_ID_BYTES = 16
#: Samples of the calibration on which the fixed point is held against the model.
_CHECKED = 2


@dataclass(frozen=True)
class Plan:
    """A model compiled for two parties.

    Attributes:
        program: The public half: hand it to the client and the dealer.
        weights: The server's weights in float64, by name.
        constants: The server's biases, embeddings and tokens, by name.
        embedding: The public table of token embeddings, `(vocabulary, width)`, where the client
            looks them up itself; else None.
    """

    program: Program
    weights: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]
    embedding: Tensor | None = None

    def __repr__(self) -> str:
        return f"Plan({self.program.family}, {self.program.digest[:12]})"

    def owner(self) -> Owner:
        """Encode the weights for the server."""
        return Owner(self.weights, self.constants, self.program.weights)

    def save(self, folder: Path) -> None:
        """Write `public/`, for everybody, and `weights.npz`, for this user alone."""
        (folder / PUBLIC).mkdir(parents=True, exist_ok=True)
        (folder / PUBLIC / PROGRAM_FILE).write_text(self.program.to_json() + "\n")
        if self.embedding is not None:
            np.save(folder / PUBLIC / EMBEDDING_FILE, self.embedding.numpy())
        named = {f"weight:{k}": v for k, v in self.weights.items()}
        named |= {f"constant:{k}": v for k, v in self.constants.items()}
        buffer = io.BytesIO()
        np.savez(buffer, **{k: v.numpy() for k, v in named.items()})  # pyright: ignore
        write_secret(folder / WEIGHTS_FILE, [buffer.getvalue()])

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Read what `save` wrote.

        Raises:
            ParameterError: A file is missing or can't be read.
            PlanMismatchError: The weights are not those of the program.
        """
        program = read_program(folder / PUBLIC / PROGRAM_FILE)
        found: dict[str, dict[str, Tensor]] = {"weight": {}, "constant": {}}
        for name, array in read_archive(folder / WEIGHTS_FILE).items():
            kind, _, key = name.partition(":")
            found.setdefault(kind, {})[key] = torch.from_numpy(array)
        shapes = {
            kind: {k: tuple(v.shape) for k, v in part.items()} for kind, part in found.items()
        }
        wanted = {k: info.shape for k, info in program.weights.items()}
        if shapes != {"weight": wanted, "constant": program.constants}:
            raise PlanMismatchError(
                f"{WEIGHTS_FILE} doesn't belong to {PROGRAM_FILE}; compile the model again"
            )
        path = folder / PUBLIC / EMBEDDING_FILE
        table = torch.from_numpy(read_array(path)) if path.exists() else None
        return cls(program, found["weight"], found["constant"], table)

    def cost(
        self,
        network: _cost.Network = "lan",
        query: _query.Query | None = None,
    ) -> _cost.Cost:
        """Predict what one query costs; see `secure.smpc.predict`."""
        return _cost.predict(self.program, query or _query.Query("embedding"), network)

    def leakage(self, query: _query.Query | None = None) -> _leakage.Leakage:
        """Say in words what each party learns; see `secure.smpc.Leakage`."""
        return _leakage.describe(self.program, query or _query.Query("embedding"))

    def check(self, batch: Mapping[str, Tensor] | Tensor, expected: Tensor, max_abs_error: float):
        """Run privately inside this process and hold the result against the plaintext.

        Args:
            batch: Inputs as for `compile`.
            expected: What the model gives in the clear for them.
            max_abs_error: Largest difference agreed on.

        Returns:
            The largest difference found.

        Raises:
            AccuracyError: It's over `max_abs_error`.
        """
        raw = as_fields(batch)
        rows = len(next(iter(raw.values())))
        parts = []
        for start in range(0, rows, _query.MAX_BATCH):
            part = {k: v[start : start + _query.MAX_BATCH] for k, v in raw.items()}
            size = len(next(iter(part.values())))
            parts.append(infer(self, part, _query.Query("embedding", batch=size)).value)
        error = float((torch.cat(parts) - expected.to(torch.float64)).abs().max())
        if not error <= max_abs_error:
            raise AccuracyError(
                f"the private result is off by {error:.3g}, agreed were {max_abs_error:.3g}"
            )
        return error


def as_fields(batch: Mapping[str, Tensor] | Tensor) -> dict[str, Tensor]:
    """Name a bare tensor by what it looks like: images, token ids or features.

    Raises:
        ParameterError: Neither a tensor nor a mapping of tensors, or empty.
    """
    if isinstance(batch, Tensor):
        if not batch.is_floating_point():
            return {"input_ids": batch}
        return {"pixel_values" if batch.dim() == 4 else "features": batch}
    fields = dict(batch)
    for name, value in fields.items():
        if not isinstance(value, Tensor):
            raise ParameterError(
                f"{name!r} is a {type(value).__name__}; a batch is a tensor or a mapping of names "
                "to tensors"
            )
    sizes = {len(value) if value.dim() else 0 for value in fields.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ParameterError(
            "a batch is a tensor or a mapping of names to tensors, not empty, with as many inputs "
            f"in each; got { ({k: tuple(v.shape) for k, v in fields.items()}) }"
        )
    return {k: v.float() if v.is_floating_point() else v for k, v in fields.items()}


def compile(
    model: nn.Module,
    calibration: Mapping[str, Tensor] | Tensor,
    public_parts: tuple[str, ...] = (),
    public_embedding: bool = False,
) -> Plan:
    """Compile a torch model to a two-party computation.

    The modules are walked one by one; LayerNorm's weights, 1/√d and the class token are folded
    into the linear layers beside them. The calibration batch fixes, layer by layer, the ranges in
    which each protocol is right; it's public, as the ranges are.

    Args:
        model: A CLIP, SigLIP, SigLIP 2, ViT or BERT of transformers, one of its towers, or a
            module whose class name was registered. Adapters must be merged. In eval mode.
        calibration: A batch of public inputs like those to come: `pixel_values`, `input_ids` or
            `features` by name, or a bare tensor. Its size apart from the batch is the program's.
        public_parts: What the client runs in the clear before the program, in words; it's
            repeated by `plan.leakage()`.
        public_embedding: For a text encoder: the table of token embeddings is public, and the
            client looks its tokens up (`inputs_embeds = plan.embedding[input_ids]`) instead of
            multiplying one-hot rows with a secret table. Position embeddings stay secret.

    Returns:
        The plan.

    Raises:
        UnsupportedModuleError: A module has no mapping (its path is named), or the mapping
            doesn't give what the model gives.
        CalibrationError: An activation is out of range (its layer is named).
        AccuracyError: The fixed-point arithmetic misses the model.

    Warns:
        CalibrationWarning: The calibration has few samples, or some that the others' ranges
            would not have covered: inputs to come may leave the ranges.

    Guarantees:
        The mapping was run in float64 on the calibration batch and compared with the model; the
        program's fixed-point arithmetic was run on those two of its inputs that reach furthest,
        and is within 0.5 % of the model's largest output there. Rows of padding don't count.
    """
    if model.training:
        raise ParameterError("compile a model in eval mode: model.eval()")
    batch = as_fields(calibration)
    exact = single_precision(model)
    builder = Builder(public_embedding)
    with torch.no_grad():
        expected = reference(exact, batch)
        try:
            result = trace(builder, exact, batch)
        except (RuntimeError, KeyError, IndexError, AttributeError) as error:
            raise unfollowed(model, error) from error
        compare(model, batch, expected, result.sample)
    length = _length(builder, result) if len(result.shape) == 1 else None
    if builder.embedding is not None:
        public_parts = (*public_parts, "the table of token embeddings")
    elif public_embedding:
        raise ParameterError("public_embedding is for text encoders; this program takes no tokens")
    program = Program(
        family=type(model).__name__,
        inputs=tuple(builder.inputs),
        operations=tuple(builder.operations),
        weights=builder.weight_infos,
        constants={k: tuple(v.shape) for k, v in builder.constants.items()},
        output=result.name,
        output_shape=result.shape,
        output_magnitude=_ring.magnitude_bits(float(result.sample.abs().max()) * 2 * MARGIN),
        length=length,
        public_parts=tuple(public_parts),
        identifier=SecureRandom().token(_ID_BYTES).hex(),
    )
    plan = Plan(program, builder.weights, builder.constants, builder.embedding)
    _hold_against(plan, builder.ranges, batch, expected)
    return plan


def _hold_against(
    plan: Plan, ranges: list[_ranges.Range], batch: Mapping[str, Tensor], expected: Tensor
) -> None:
    """Check the finished program on the calibration, and warn where that is thin."""
    require_mapped(plan.program, batch)
    rows = _ranges.furthest(ranges, len(expected), _CHECKED)
    part = {name: value[rows] for name, value in batch.items()}
    if plan.embedding is not None:
        part["inputs_embeds"] = plan.embedding[part["input_ids"]]
    check_fixed_point(plan.program, plan.owner(), part, expected[rows])
    thin = _ranges.warning(ranges, len(expected))
    if thin is not None:
        warnings.warn(thin, CalibrationWarning, stacklevel=3)


def _length(builder: Builder, result: Value):
    """Find how to normalise the output, without adding it to the program."""
    try:
        squares = (result.sample**2).sum(-1, keepdim=True)
        return norm_parameters("output", result.shape[-1], False, squares, 1.0, 0.0)
    except CalibrationError:
        return None
