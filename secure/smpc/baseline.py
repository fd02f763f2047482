"""CrypTen's own approximations on a compiled program: the baseline, for measuring only.

The same operations in the same order, with CrypTen 0.4.1's tanh GELU, softmax, inverse square
root, Beaver products and local truncation. Its trusted first party makes every triple in party 0,
from generators that aren't cryptographic: party 0 could read everything. So `secure.smpc` keeps
both locked (`_crypten`), and the baseline unlocks them only between two processes of one machine,
which it alone connects, for data that the caller calls public.
"""

import importlib
import math
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secure.errors import ParameterError, PolicyError
from secure.smpc import program as p
from secure.smpc._crypten import from_crypten, load_crypten, public_data, to_crypten
from secure.smpc._execute import prepare
from secure.smpc.errors import UnsupportedModuleError
from secure.smpc.program import Operation, Program

__all__ = ["Baseline", "BaselineResult", "from_crypten", "load_crypten", "to_crypten"]


@dataclass(frozen=True)
class BaselineResult:
    """What a baseline run gave, on this side.

    Attributes:
        value: The revealed output (on both sides: CrypTen opens to all).
        rounds: CrypTen's count of communication rounds.
        sent_bytes: Half of CrypTen's count of bytes, which is of both directions.
        seconds: Wall time without what the provider took to make triples.
    """

    value: Tensor
    rounds: int
    sent_bytes: int
    seconds: float


class Baseline:
    """Runs programs on CrypTen, as one of two processes on this machine: a context manager.

    It sets up CrypTen's communicator itself, over loopback and a file, so that no other machine
    can take part: two processes of one user have nothing to hide from each other.

    Args:
        rank: 0 (owner of the weights) or 1.
        meeting: File where the two processes meet; neither may have made it before.
        nothing_secret: The caller's word that inputs and weights are public.

    Raises:
        PolicyError: The word wasn't given.
        MissingExtraError: CrypTen isn't installed.
    """

    def __init__(self, rank: int, meeting: Path, nothing_secret: bool = False) -> None:
        self.crypten = load_crypten()
        if not nothing_secret:
            raise PolicyError(
                "CrypTen's trusted first party and its torch generators protect nothing: the "
                "baseline runs on public data only, and wants nothing_secret=True to say so"
            )
        if rank not in (0, 1):
            raise ParameterError(f"a baseline has ranks 0 and 1, got {rank}")
        self._rank, self._meeting = rank, meeting
        self._provider_s = 0.0
        self._open = ExitStack()

    def __enter__(self) -> "Baseline":
        os.environ.update(
            WORLD_SIZE="2",
            RANK=str(self._rank),
            DISTRIBUTED_BACKEND="gloo",
            RENDEZVOUS=self._meeting.resolve().as_uri(),
            GLOO_SOCKET_IFNAME="lo",
        )
        self._open.enter_context(public_data())
        try:
            self.crypten.init()
        except BaseException:
            self._open.close()
            raise
        self._open.callback(self.crypten.uninit)
        # CrypTen counts rounds and bytes only when it is told to be verbose.
        importlib.import_module("crypten.config").cfg.communicator.verbose = True
        self._time_provider()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _time_provider(self) -> None:
        """Count the time in which triples are made: a real dealer would make them beforehand."""
        provider = importlib.import_module("crypten.mpc").get_default_provider()
        for name in type(provider).TRACEABLE_FUNCTIONS:
            inner = getattr(type(provider), name)

            def timed(*args: Any, inner: Any = inner, **kwargs: Any) -> Any:
                start = time.perf_counter()
                try:
                    return inner(provider, *args, **kwargs)
                finally:
                    self._provider_s += time.perf_counter() - start

            setattr(provider, name, timed)

    def share(self, value: Tensor, source: int) -> Any:
        """Share a tensor; the other side passes one of the same shape, whose content is unused."""
        return self.crypten.cryptensor(value.to(torch.float32), src=source)

    def run(
        self,
        program: Program,
        weights: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        raw: Mapping[str, Tensor],
    ) -> BaselineResult:
        """Run a program and reveal its output.

        Args:
            program: The program.
            weights: The server's weights (zeros of the same shapes on the client).
            constants: The server's constants (likewise).
            raw: The client's input (zeros on the server).
        """
        secret = {name: self.share(w, 0) for name, w in weights.items()}
        secret |= {f"constant {name}": self.share(c, 0) for name, c in constants.items()}
        values = {spec.name: self.share(prepare(spec, raw), 1) for spec in program.inputs}
        communicator = importlib.import_module("crypten.communicator").get()
        communicator.barrier()
        communicator.reset_communication_stats()
        self._provider_s = 0.0
        start = time.perf_counter()
        for op in program.operations:
            _apply(self, op, values, secret)
        result = values[program.output]
        seconds = time.perf_counter() - start - self._provider_s
        stats = communicator.get_communication_stats()
        value = result.get_plain_text().to(torch.float64)
        # CrypTen logs what a party sends and what it receives; exchanges are symmetric.
        return BaselineResult(value, stats["rounds"], stats["bytes"] // 2, seconds)


def _apply(baseline: Baseline, op: Operation, values: dict[str, Any], secret: dict) -> None:
    """Run one operation with CrypTen's functions."""
    if isinstance(op, p.Linear):
        weight = secret[op.weight]
        x = values[op.source]
        made = x * weight if weight.dim() == 1 else x.matmul(weight)
        if op.bias is not None:
            made = made + secret[f"constant {op.bias}"]
    elif isinstance(op, p.Add):
        made = values[op.left] + values[op.right]
    elif isinstance(op, p.AddConstant):
        made = values[op.source] + secret[f"constant {op.constant}"]
    elif isinstance(op, p.Prepend):
        first = secret[f"constant {op.constant}"].unsqueeze(0)
        made = baseline.crypten.cat([first, values[op.source]], dim=-2)
    elif isinstance(op, p.Slice):
        made = values[op.source][..., op.start : op.stop]
    elif isinstance(op, p.Token):
        made = values[op.source][:, op.index]
    elif isinstance(op, p.MeanTokens):
        made = values[op.source][:, op.start :].mean(1)
    elif isinstance(op, p.Rescale):
        made = values[op.source]
    elif isinstance(op, p.Normalise):
        made = _normalise(values[op.source], op)
        if op.kept is not None:
            values[op.kept] = values[op.source]
    elif isinstance(op, p.Activation):
        made = _activation(values[op.source], op)
    elif isinstance(op, p.Attention) and _plain(op):
        made = _attention(values[op.query], values[op.key], values[op.value], op.heads)
    else:
        raise UnsupportedModuleError(op.path, op.kind, "the baseline runs image towers only")
    values[op.target] = made


def _plain(op: p.Attention) -> bool:
    return op.mask is None and op.bias is None and not op.parameters.causal


def _normalise(x: Any, op: p.Normalise) -> Any:
    centre = x - x.mean(-1, keepdim=True) if op.parameters.centred else x
    table = op.parameters.table
    width = op.parameters.width
    ratio = width / 2.0 ** (width - 1).bit_length() if op.parameters.centred else 1.0
    # The program's table is for values scaled by `ratio`; here they aren't.
    squares = (centre * centre).sum(-1, keepdim=True)
    return centre * (squares / table.divisor + table.offset / ratio**2).inv_sqrt()


def _activation(x: Any, op: p.Activation) -> Any:
    if op.series.function == "tanh":
        return x.tanh()
    if op.series.function == "quick_gelu":
        return x * (x * 1.702).sigmoid()
    inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
    return x * (inner.tanh() + 1) * 0.5


def _attention(q: Any, k: Any, v: Any, heads: int) -> Any:
    batch, tokens, width = q.size()

    def split(x: Any) -> Any:
        return x.view(batch, x.size(1), heads, width // heads).transpose(1, 2)

    mixed = split(q).matmul(split(k).transpose(-1, -2)).softmax(-1).matmul(split(v))
    return mixed.transpose(1, 2).reshape(batch, tokens, width)
