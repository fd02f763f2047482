"""Runs a program on shares: nothing here knows a model."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from secure.smpc import _attention, _norm, _ring, program
from secure.smpc._inputs import prepare, require_mapped
from secure.smpc._items import MatrixProduct
from secure.smpc._party import Party, Share
from secure.smpc.program import Operation, Program, WeightInfo

Values = dict[str, Share]


class Owner:
    """The server's secrets in fixed point: weights ready to multiply, and constants."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        infos: Mapping[str, WeightInfo],
    ) -> None:
        self.encoded = {k: _ring.encode(w, infos[k].bits) for k, w in weights.items()}
        self.ready = {
            k: w if infos[k].diagonal else _ring.SmallMatrix(w) for k, w in self.encoded.items()
        }
        self.constants = dict(constants)

    def __repr__(self) -> str:
        return f"Owner(weights={len(self.ready)})"


def _constant(
    party: Party, owner: Owner | None, name: str | None, like: Tensor, bits: int
) -> Tensor:
    """Return this party's share of a constant of the server's; zero where there is none."""
    if owner is None or name is None:
        return torch.zeros((), dtype=torch.int64, device=like.device)
    return _ring.encode(owner.constants[name], bits)


class Executor:
    """Runs operations for one party.

    Args:
        plan: The program.
        party: This party.
        owner: The server's secrets; None on the client and when counting.
        batch: Inputs in this run.
    """

    def __init__(self, plan: Program, party: Party, owner: Owner | None, batch: int) -> None:
        self._program, self._party, self._owner, self._batch = plan, party, owner, batch
        self._device = "meta" if party.counts_only else "cpu"

    def inputs(self, raw: Mapping[str, Tensor] | None) -> Values:
        """Return the first shares: the client holds its input whole, the server zeros."""
        values = {}
        if raw is not None:
            require_mapped(self._program, raw)
        for spec in self._program.inputs:
            shape = (self._batch, *spec.shape)
            if raw is None:
                value = torch.zeros(shape, dtype=torch.int64, device=self._device)
            else:
                real = prepare(spec, raw)
                value = _ring.encode(real, spec.bits)
            values[spec.name] = Share(value, spec.bits)
        return values

    def run(
        self,
        values: Values,
        progress: Callable[[str, int, int], None] = lambda task, done, total: None,
    ) -> Share:
        """Run every operation and return the share of the output."""
        values = dict(values)
        total = len(self._program.operations)
        last_use = {}
        for at, op in enumerate(self._program.operations):
            last_use.update(dict.fromkeys(program.sources(op), at))
        for at, op in enumerate(self._program.operations):
            values.update(self.apply(op, values))
            for name in program.sources(op):
                if last_use[name] == at and name != self._program.output:
                    values.pop(name, None)
            progress("computing", at + 1, total)
        return values[self._program.output]

    def apply(self, op: Operation, values: Values) -> Values:
        """Run one operation and return what it makes, by name."""
        handler = getattr(self, f"_{op.kind}")
        made = handler(op, values)
        return made if isinstance(made, dict) else {op.target: made}

    def _linear(self, op: program.Linear, values: Values) -> Share:
        info = self._program.weights[op.weight]
        result = self._party.weighted(
            values[op.source], op.weight, info.shape[-1], info.bits, info.diagonal
        )
        if op.bias is not None:
            bias = _constant(self._party, self._owner, op.bias, result.value, result.bits)
            result = Share(result.value + bias, result.bits)
        if op.output_bits is not None:
            (result,) = self._party.run(self._party.rescale(result, op.output_bits))
        return result

    def _add(self, op: program.Add, values: Values) -> Share:
        left, right = values[op.left], values[op.right]
        bits = max(left.bits, right.bits)
        total = (left.value << (bits - left.bits)) + (right.value << (bits - right.bits))
        return Share(total, bits)

    def _add_constant(self, op: program.AddConstant, values: Values) -> Share:
        x = values[op.source]
        return Share(
            x.value + _constant(self._party, self._owner, op.constant, x.value, x.bits), x.bits
        )

    def _load(self, op: program.Load, values: Values) -> Share:
        shape = (self._batch, *self._program.constants[op.constant])
        zero = torch.zeros(shape, dtype=torch.int64, device=self._device)
        return Share(zero + _constant(self._party, self._owner, op.constant, zero, 16), 16)

    def _prepend(self, op: program.Prepend, values: Values) -> Share:
        x = values[op.source]
        shape = (self._batch, *self._program.constants[op.constant])
        first = torch.zeros(shape, dtype=torch.int64, device=self._device)
        first = first + _constant(self._party, self._owner, op.constant, first, x.bits)
        return Share(torch.cat([first, x.value], dim=-2), x.bits)

    def _slice(self, op: program.Slice, values: Values) -> Share:
        return values[op.source].map(lambda t: t[..., op.start : op.stop].contiguous())

    def _token(self, op: program.Token, values: Values) -> Share:
        return values[op.source].map(lambda t: t[..., op.index, :].contiguous())

    def _mean_tokens(self, op: program.MeanTokens, values: Values) -> Share:
        x = values[op.source].map(lambda t: t[..., op.start :, :])
        count = x.shape[-2]
        # 1/count with 16 bits of its own, relative to the power of two next to it.
        lift = 16 + (count - 1).bit_length()
        total = x.value.sum(-2) * round((1 << lift) / count)
        (mean,) = self._party.run(self._party.rescale(Share(total, x.bits + lift), op.output_bits))
        return mean

    def _select_token(self, op: program.SelectToken, values: Values) -> Share:
        x, selector = values[op.source], values[op.selector]
        row = selector.value.unsqueeze(-2)
        held = self._party.take(MatrixProduct(tuple(row.shape), x.shape))
        e, f = self._party.run(
            self._party.opening(row, held["a"]), self._party.opening(x.value, held["b"])
        )
        return Share(
            _attention.matrix_product(self._party, held, e, f).squeeze(-2), x.bits + selector.bits
        )

    def _rescale(self, op: program.Rescale, values: Values) -> Share:
        (result,) = self._party.run(self._party.rescale(values[op.source], op.bits))
        return result

    def _normalise(self, op: program.Normalise, values: Values) -> Values:
        result, kept = _norm.normalise(self._party, values[op.source], op.parameters, op.keep_bits)
        return {op.target: result} if op.kept is None else {op.target: result, op.kept: kept}

    def _activation(self, op: program.Activation, values: Values) -> Share:
        (result,) = self._party.run(self._party.series(values[op.source], op.series))
        return result

    def _attention(self, op: program.Attention, values: Values) -> Share:
        def heads(share: Share) -> Share:
            batch, tokens, width = share.shape
            split = share.value.view(batch, tokens, op.heads, width // op.heads)
            return Share(split.transpose(1, 2).contiguous(), share.bits)

        mask = None
        if op.mask is not None:
            mask = values[op.mask].value[:, None, None, :]
        mixed = _attention.attend(
            self._party,
            heads(values[op.query]),
            heads(values[op.key]),
            heads(values[op.value]),
            op.parameters,
            mask,
            lambda like, bits: _constant(self._party, self._owner, op.bias, like, bits),
        )
        batch, count, tokens, width = mixed.shape
        joined = mixed.value.transpose(1, 2).reshape(batch, tokens, count * width)
        return Share(joined, mixed.bits)
