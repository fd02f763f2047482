"""Builds a program while it runs the model in float64 on the public calibration batch.

Each value carries its calibration sample, so every operation is checked against its protocol's
domain as it is added, and an activation out of range is an error that names its module.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secure.smpc import _ring, program
from secure.smpc._domains import (
    MARGIN,
    VARIANCE_MARGIN,
    activation_series,
    norm_parameters,
    score_spread,
    softmax_parameters,
)
from secure.smpc._inputs import patches
from secure.smpc._norm import NormParameters, width_bits
from secure.smpc._ranges import Range, by_sample
from secure.smpc._series import FUNCTIONS, PRECISION_BITS
from secure.smpc.errors import CalibrationError, UnsupportedModuleError

#: Fraction bits of a value between layers, and of a weight.
VALUE_BITS = 16
WEIGHT_BITS = 18
_LEAST_WEIGHT_BITS = 12


def _largest(path: str, sample: Tensor) -> float:
    """Return the largest magnitude of a calibration sample, which must be finite."""
    largest = float(sample.abs().max()) if sample.numel() else 0.0
    if not math.isfinite(largest):
        raise CalibrationError(f"{path}: an activation of the calibration is not finite")
    return largest


class Value:
    """A value of the program under construction.

    Attributes:
        name: Its name in the program; changes when the value is rescaled.
        bits: Its fraction bits.
        sample: float64, shape `(batch, *shape)`: the value on the calibration batch.
    """

    def __init__(self, name: str, bits: int, sample: Tensor) -> None:
        self.name, self.bits, self.sample = name, bits, sample

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape for one input."""
        return tuple(self.sample.shape[1:])


class Builder:
    """Adds operations; see `secure.smpc.register` for handlers that use it."""

    def __init__(self, public_embedding: bool = False) -> None:
        self.public_embedding = public_embedding
        self.embedding: Tensor | None = None
        self.inputs: list[program.Input] = []
        self.operations: list[program.Operation] = []
        self.weights: dict[str, Tensor] = {}
        self.weight_infos: dict[str, program.WeightInfo] = {}
        self.constants: dict[str, Tensor] = {}
        self.ranges: list[Range] = []
        self._leading = 0
        self._count = 0

    # -- bookkeeping -------------------------------------------------------------------------

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def _made(self, path: str, name: str, bits: int, sample: Tensor) -> Value:
        largest = _largest(path, sample)
        if _ring.magnitude_bits(largest * 2 * MARGIN) + bits > _ring.LIMIT_BITS:
            raise CalibrationError(
                f"{path}: an activation of {largest:.3g} leaves the ring with {bits} fraction bits"
            )
        return Value(name, bits, sample)

    def _note(self, path: str, what: str, extremes: Tensor, limit: float) -> None:
        """Remember a range: the samples' extremes, and how far the protocol is right."""
        largest = float(extremes.max()) if extremes.numel() else 0.0
        if largest > 0:
            self.ranges.append(Range(path, what, extremes, limit / largest))

    def _note_variances(
        self, path: str, squares: Tensor, divisor: float, epsilon: float, p: NormParameters
    ) -> None:
        """Remember how far variances may grow and shrink; a token with a gain shrinks alone."""
        gains = torch.tensor(p.gains or (0,), dtype=torch.float64).view(-1, 1)
        squares = squares * 4.0**gains
        largest = by_sample(squares)
        self._note(path, "variance", largest, float(largest.max()) * VARIANCE_MARGIN)
        least = by_sample(1 / (squares / divisor + epsilon * 4.0**gains))
        self._note(path, "small variance", least, float(least.max()) * VARIANCE_MARGIN)

    def _secret(self, path: str, name: str, tensor: Tensor, where: dict[str, Tensor]) -> str:
        key = f"{path}.{name}" if path else name
        if key in where:
            raise UnsupportedModuleError(
                path, name, "is used twice; shared modules have no mapping"
            )
        where[key] = tensor.detach().to(torch.float64)
        return key

    def rescale(self, value: Value, bits: int, path: str) -> None:
        """Bring a value to other fraction bits, in place."""
        if value.bits == bits:
            return
        name = self._name()
        self.operations.append(program.Rescale(name, path, value.name, bits))
        value.name, value.bits = name, bits

    # -- inputs ------------------------------------------------------------------------------

    def image(self, pixels: Tensor, patch: int, path: str) -> Value:
        """Take an image from the client, cut into square patches.

        Args:
            pixels: Calibration images, shape `(batch, C, H, W)`.
            patch: Side of a patch.
            path: Path of the module.
        """
        if pixels.dim() != 4 or pixels.shape[-1] % patch or pixels.shape[-2] % patch:
            raise UnsupportedModuleError(
                path, "patches", f"images of shape {tuple(pixels.shape)} don't cut into {patch}"
            )
        sample = patches(pixels.to(torch.float64), patch)
        return self._input("pixel_values", "patches", pixels, sample, VALUE_BITS, patch=patch)

    def real(self, features: Tensor, field: str, grid: tuple[int, ...] = ()) -> Value:
        """Take real features from the client, as they are: `(batch, ..., width)`."""
        return self._input(field, "real", features, grid=grid)

    def tokens(
        self, ids: Tensor, vocabulary: int, first_position: int = 0, pad: int | None = None
    ) -> Value:
        """Take token ids from the client as one-hot rows: `(batch, length, vocabulary)`."""
        self._leading = 1  # a text's first token is the same mark in all
        sample = nn.functional.one_hot(ids.to(torch.int64), vocabulary).to(torch.float64)
        return self._input(
            "input_ids", "one_hot", ids, sample, 0, first_position=first_position, pad=pad
        )

    def looked_up(
        self, ids: Tensor, table: Tensor, first_position: int = 0, pad: int | None = None
    ) -> Value:
        """Take token embeddings from the client, which looks them up in the public table."""
        self._leading = 1
        self.embedding = table.detach().clone()
        return self._input(
            "inputs_embeds",
            "real",
            self.embedding[ids],
            reach=self.embedding,
            first_position=first_position,
            pad=pad,
        )

    def padding(self, mask: Tensor) -> Value:
        """Take from the client which tokens are padding: 0 for a token, −1 for padding."""
        sample = mask.to(torch.float64) - 1
        anchor = 0 if bool((sample[:, 0] == 0).all()) else None
        return self._input("attention_mask", "padding", mask, sample, 0, token=anchor)

    def position_of(self, ids: Tensor, token: int | None) -> Value:
        """Take from the client where a token first appears, as a one-hot row."""
        target = ids.amax(-1, keepdim=True) if token is None else token
        place = (ids == target).to(torch.int64).argmax(-1)
        sample = nn.functional.one_hot(place, ids.shape[-1]).to(torch.float64)
        return self._input("input_ids", "position", ids, sample, 0, token=token)

    def _input(
        self,
        field: str,
        kind: str,
        raw: Tensor,
        sample: Tensor | None = None,
        bits: int = VALUE_BITS,
        patch: int = 0,
        token: int | None = None,
        reach: Tensor | None = None,
        grid: tuple[int, ...] = (),
        first_position: int = 0,
        pad: int | None = None,
    ) -> Value:
        name = self._name()
        sample = raw.to(torch.float64) if sample is None else sample
        limit = 0.0
        if kind in ("patches", "real"):
            # A power of two, so that the range tells little about the calibration batch.
            limit = 2.0 ** (
                _ring.magnitude_bits(_largest("input", raw if reach is None else reach)) + 2
            )
        value = self._made("input", name, bits, sample)
        self.inputs.append(
            program.Input(
                name,
                field,
                kind,
                tuple(raw.shape[1:]),
                value.shape,
                bits,
                patch=patch,
                token=token,
                limit=limit,
                grid=grid,
                first_position=first_position,
                pad=pad,
            )
        )
        return value

    # -- linear operations -------------------------------------------------------------------

    def linear(
        self,
        x: Value,
        weight: Tensor,
        bias: Tensor | None,
        path: str,
        output: str = "value",
    ) -> Value:
        """Multiply by a secret weight.

        Args:
            x: Shape `(..., inputs)`.
            weight: Shape `(outputs, inputs)` as torch keeps it, or `(features,)` for a product
                feature by feature.
            bias: Shape `(outputs,)` or None.
            path: Path of the module.
            output: `value` (16 bits), `raw` (untruncated: what follows is a residual sum or a
                normalisation) or `activation` (as many bits as a series takes).
        """
        weight = weight.detach().to(torch.float64)
        sample = x.sample * weight if weight.dim() == 1 else x.sample @ weight.T
        if bias is not None:
            sample = sample + bias.detach().to(torch.float64)
        largest = _largest(path, sample) * 2 * MARGIN
        room = _ring.LIMIT_BITS - 1 - max(0, _ring.magnitude_bits(largest))
        if output == "activation":
            room = min(room, 2 * PRECISION_BITS["gelu"] - 1)
        if room - x.bits < _LEAST_WEIGHT_BITS:
            self.rescale(x, VALUE_BITS, path)
        weight_bits = min(WEIGHT_BITS, room - x.bits)
        if weight_bits < _LEAST_WEIGHT_BITS:
            raise CalibrationError(f"{path}: outputs of {largest:.3g} leave no room for weights")
        stored = weight if weight.dim() == 1 else weight.T.contiguous()
        key = self._secret(path, "weight", stored, self.weights)
        self.weight_infos[key] = program.WeightInfo(tuple(stored.shape), weight_bits)
        bias_key = None if bias is None else self._secret(path, "bias", bias, self.constants)
        bits = VALUE_BITS if output == "value" else x.bits + weight_bits
        target = self._name()
        self.operations.append(
            program.Linear(target, path, x.name, key, bias_key, bits if output == "value" else None)
        )
        return self._made(path, target, bits, sample)

    def add(self, left: Value, right: Value, path: str) -> Value:
        """Add two values; bits with which their sum would leave the ring are cut first."""
        sample = left.sample + right.sample
        room = _ring.LIMIT_BITS - max(0, _ring.magnitude_bits(_largest(path, sample) * 2 * MARGIN))
        for value in (left, right):
            if value.bits > room:
                self.rescale(value, max(VALUE_BITS, room), path)
        bits = max(left.bits, right.bits)
        target = self._name()
        self.operations.append(program.Add(target, path, left.name, right.name))
        return self._made(path, target, bits, sample)

    def add_constant(self, x: Value, constant: Tensor, path: str) -> Value:
        """Add a secret constant of the server's, broadcast over the batch."""
        key = self._secret(path, "constant", constant, self.constants)
        target = self._name()
        self.operations.append(program.AddConstant(target, path, x.name, key))
        return self._made(path, target, x.bits, x.sample + self.constants[key])

    def prepend(self, x: Value, tokens: Tensor, path: str) -> Value:
        """Put secret tokens, shape `(count, width)`, before those of x."""
        self._leading += len(tokens)
        key = self._secret(path, "tokens", tokens, self.constants)
        target = self._name()
        self.operations.append(program.Prepend(target, path, x.name, key))
        first = self.constants[key].expand(len(x.sample), *tokens.shape)
        return self._made(path, target, x.bits, torch.cat([first, x.sample], dim=-2))

    def load(self, constant: Tensor, batch: int, path: str) -> Value:
        """Make a value of a secret constant of the server's."""
        key = self._secret(path, "load", constant, self.constants)
        target = self._name()
        self.operations.append(program.Load(target, path, key))
        sample = self.constants[key].expand(batch, *constant.shape).clone()
        return self._made(path, target, VALUE_BITS, sample)

    def slice(self, x: Value, start: int, stop: int, path: str) -> Value:
        """Take features start to stop."""
        target = self._name()
        self.operations.append(program.Slice(target, path, x.name, start, stop))
        return self._made(path, target, x.bits, x.sample[..., start:stop])

    def token(self, x: Value, index: int, path: str) -> Value:
        """Take one token of `(tokens, width)`."""
        target = self._name()
        self.operations.append(program.Token(target, path, x.name, index))
        return self._made(path, target, x.bits, x.sample[..., index, :])

    def mean_tokens(self, x: Value, start: int, path: str) -> Value:
        """Average the tokens from `start` on."""
        self.rescale(x, VALUE_BITS, path)
        target = self._name()
        self.operations.append(program.MeanTokens(target, path, x.name, start, VALUE_BITS))
        return self._made(path, target, VALUE_BITS, x.sample[..., start:, :].mean(-2))

    def select_token(self, x: Value, selector: Value, path: str) -> Value:
        """Take the token that the client's secret one-hot row points at."""
        target = self._name()
        self.operations.append(program.SelectToken(target, path, x.name, selector.name))
        sample = (selector.sample.unsqueeze(-2) @ x.sample).squeeze(-2)
        return self._made(path, target, x.bits + selector.bits, sample)

    # -- the rest ----------------------------------------------------------------------------

    def normalise(
        self, x: Value, epsilon: float, path: str, centred: bool = True, keep: bool = True
    ) -> Value:
        """Normalise over the last axis: LayerNorm without its affine part, or a vector's length.

        Args:
            x: Shape `(..., width)`; with `keep` it is brought to 16 bits on the way.
            epsilon: LayerNorm's epsilon.
            path: Path of the module.
            centred: False for x/‖x‖.
            keep: Whether x is used again.
        """
        width = x.shape[-1]
        mean = x.sample.mean(-1, keepdim=True) if centred else 0.0
        centre = x.sample - mean
        squares = (centre**2).sum(-1, keepdim=True)
        divisor = float(width) if centred else 1.0
        result = centre / torch.sqrt(squares / divisor + epsilon)
        ratio = width / 2.0 ** width_bits(width) if centred else 1.0
        parameters = norm_parameters(
            path, width, centred, squares * ratio**2, divisor, epsilon * ratio**2, self._leading
        )
        self._note_variances(path, squares, divisor, epsilon, parameters)
        if (
            centred
            and x.bits
            + width_bits(width)
            + _ring.magnitude_bits(float(centre.abs().max()) * 2 * MARGIN)
            > _ring.LIMIT_BITS
        ):
            self.rescale(x, VALUE_BITS, path)
        target, kept, keep_bits = self._name(), None, None
        if keep and x.bits != VALUE_BITS:
            kept, keep_bits = self._name(), VALUE_BITS
        self.operations.append(program.Normalise(target, path, x.name, parameters, kept, keep_bits))
        if kept is not None:
            x.name, x.bits = kept, VALUE_BITS
        return self._made(path, target, parameters.output_bits, result)

    def layer_norm(self, x: Value, module: nn.Module, path: str, keep: bool = True) -> "Affine":
        """Normalise as `nn.LayerNorm` does; its weight and bias wait for the next linear."""
        if not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) != 1:
            raise UnsupportedModuleError(
                path, type(module).__name__, "only LayerNorm over features"
            )
        core = self.normalise(x, module.eps, path, keep=keep)
        return Affine(core, module.weight, module.bias, path)

    def affine(self, x: "Affine") -> Value:
        """Apply a waiting affine part, where what follows is not linear."""
        if x.weight is None:
            return x.core
        return self.linear(x.core, x.weight, x.bias, x.path)

    def activation(self, x: Value, function: str, path: str) -> Value:
        """Apply an activation of `_series.FUNCTIONS`."""
        series = activation_series(path, x.sample, function)
        self._note(path, function, by_sample(x.sample), series.radius)
        if x.bits > 2 * PRECISION_BITS[function] - 1:
            self.rescale(x, VALUE_BITS, path)
        target = self._name()
        self.operations.append(program.Activation(target, path, x.name, series))
        sample = torch.from_numpy(FUNCTIONS[function][0](x.sample.numpy()))
        return self._made(path, target, 2 * PRECISION_BITS[function], sample)

    def attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        heads: int,
        path: str,
        causal: bool = False,
        mask: Value | None = None,
        bias: Tensor | None = None,
    ) -> Value:
        """Attend; the queries are already scaled by 1/√d. All three have 16 bits.

        Args:
            query: Shape `(queries, width)`.
            key: Shape `(keys, width)`.
            value: Shape `(keys, width)`.
            heads: Number of heads.
            path: Path of the module.
            causal: Whether query i sees only the keys up to i.
            mask: The client's padding, from `padding`.
            bias: Secret constant that is added to the scores: `(heads, queries, keys)`.
        """

        def split(x: Value) -> Tensor:
            batch, tokens, width = x.sample.shape
            return x.sample.view(batch, tokens, heads, width // heads).transpose(1, 2)

        scores = split(query) @ split(key).transpose(-1, -2)
        bias_key = None
        if bias is not None:
            bias_key = self._secret(path, "bias", bias, self.constants)
            scores = scores + self.constants[bias_key]
        anchored = mask is not None and bool((mask.sample[:, 0] == 0).all())
        parameters = softmax_parameters(
            path, scores, value.sample, causal, mask is not None, anchored
        )
        spread, limit = score_spread(scores, parameters)
        self._note(path, "attention scores", spread, limit)
        if mask is not None:
            scores = scores + mask.sample[:, None, None, :] * parameters.padding
        if causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, -math.inf)
        mixed = (scores.softmax(-1) @ split(value)).transpose(1, 2).flatten(2)
        target = self._name()
        self.operations.append(
            program.Attention(
                target,
                path,
                query.name,
                key.name,
                value.name,
                heads,
                parameters,
                None if mask is None else mask.name,
                bias_key,
            )
        )
        return self._made(path, target, value.bits, mixed)


class Affine:
    """A normalised value whose weight and bias are still to be applied.

    Attributes:
        core: The value before them.
        weight: Shape `(width,)` or None.
        bias: Shape `(width,)` or None.
        path: Path of the LayerNorm.
    """

    def __init__(self, core: Value, weight: Tensor | None, bias: Tensor | None, path: str) -> None:
        self.core, self.weight, self.bias, self.path = core, weight, bias, path

    def fold(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list:
        """Fold into linear layers that read this value: list of (weight, bias)."""
        folded = []
        for weight, bias in zip(weights, biases, strict=True):
            weight = weight.detach().to(torch.float64)
            total = torch.zeros(len(weight), dtype=torch.float64)
            if bias is not None:
                total = total + bias.detach().to(torch.float64)
            if self.bias is not None:
                total = total + weight @ self.bias.detach().to(torch.float64)
            if self.weight is not None:
                weight = weight * self.weight.detach().to(torch.float64)
            folded.append((weight, total))
        return folded
