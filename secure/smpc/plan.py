"""A compiled model: its public program, its secret weights, and what can be said beforehand."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secure.errors import ParameterError
from secure.random import SecureRandom
from secure.smpc import _cost, _leakage, _query
from secure.smpc._arrays import read_archive, read_array
from secure.smpc._builder import Builder, Value
from secure.smpc._execute import Owner
from secure.smpc._towers import trace
from secure.smpc.errors import (
    AccuracyError,
    CalibrationError,
    PlanMismatchError,
    UnsupportedModuleError,
)
from secure.smpc.pair import infer
from secure.smpc.parcels import write_secret
from secure.smpc.program import Program, read_program

PUBLIC, PROGRAM_FILE = "public", "program.json"
WEIGHTS_FILE, EMBEDDING_FILE = "weights.npz", "embedding.npy"

#: The mapping is checked against the model itself; float32 models differ by about 1e-5.
_MAPPING_TOLERANCE = 1e-3
_ID_BYTES = 16


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
    fields = {k: v for k, v in batch.items() if isinstance(v, Tensor)}
    if not fields or any(len(v) == 0 for v in fields.values()):
        raise ParameterError("a batch is a tensor or a mapping of names to tensors, not empty")
    return fields


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

    Guarantees:
        The mapping was run in float64 on the calibration batch and compared with the model.
    """
    if model.training:
        raise ParameterError("compile a model in eval mode: model.eval()")
    batch = as_fields(calibration)
    builder = Builder(public_embedding)
    with torch.no_grad():
        result = trace(builder, model, batch)
        _compare(model, batch, result)
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
        length=length,
        public_parts=tuple(public_parts),
        identifier=SecureRandom().token(_ID_BYTES).hex(),
    )
    return Plan(program, builder.weights, builder.constants, builder.embedding)


def _length(builder: Builder, result: Value):
    """Find how to normalise the output, without adding it to the program."""
    from secure.smpc._domains import norm_parameters

    try:
        squares = (result.sample**2).sum(-1, keepdim=True)
        return norm_parameters("output", result.shape[-1], False, squares, 1.0, 0.0)
    except CalibrationError:
        return None


def _reference(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return what the model itself gives, by the names that transformers uses."""
    tower: Any = model
    if all(hasattr(model, name) for name in ("get_image_features", "get_text_features")):
        name = "get_image_features" if "pixel_values" in batch else "get_text_features"
        tower = getattr(model, name)
    found = tower(*batch.values()) if "features" in batch else tower(**batch)
    if isinstance(found, Tensor):
        return found
    for name in ("logits", "image_embeds", "text_embeds", "pooler_output", "last_hidden_state"):
        value = getattr(found, name, None)
        if isinstance(value, Tensor):
            return value
    raise UnsupportedModuleError("", type(model).__name__, "gives no output known here")


def _compare(model: nn.Module, batch: Mapping[str, Tensor], result: Value) -> None:
    reference = _reference(model, batch).to(torch.float64)
    name = type(model).__name__
    if reference.shape != result.sample.shape:
        raise UnsupportedModuleError(
            "",
            name,
            f"the mapping gives {tuple(result.sample.shape)}, the model {tuple(reference.shape)}",
        )
    scale = max(1e-6, float(reference.abs().max()))
    error = float((reference - result.sample).abs().max()) / scale
    if not error <= _MAPPING_TOLERANCE:
        raise UnsupportedModuleError(
            "",
            name,
            f"the mapping is off by {error:.2g} of the model's output: it has parts "
            "that the mapping doesn't know",
        )
