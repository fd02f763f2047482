"""Both parties and the dealer inside one process: for tests, notebooks and accuracy checks.

No secrecy is gained this way; the code that runs is that of the real parties.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from secure.random import KEY_BYTES, SecureRandom
from secure.smpc import _query
from secure.smpc._channel import Channel, PairChannel, Traffic
from secure.smpc._execute import Owner
from secure.smpc._material import deal_pair, weight_masks
from secure.smpc._party import Party
from secure.smpc._query import Query
from secure.smpc.program import Program


class Compiled(Protocol):
    """A compiled model, as `secure.smpc.Plan` is one."""

    @property
    def program(self) -> Program:
        """The public half."""
        ...

    def owner(self) -> Owner:
        """Return the server's secrets in fixed point."""
        ...


@dataclass(frozen=True)
class PairResult:
    """What an inference inside one process gave.

    Attributes:
        value: What the client learned.
        server: The server's traffic.
        client: The client's traffic.
        seconds: Wall time of the online part.
    """

    value: Tensor
    server: Traffic
    client: Traffic
    seconds: float


def run_both(work: Mapping[int, object], channels: tuple[Channel, Channel]) -> list[object]:
    """Run one function a role in two threads; the first failure ends both links and is raised.

    Args:
        work: Functions without arguments, by role.
        channels: The two ends of the link, by role.
    """
    results: list[object] = [None, None]
    failures: list[BaseException] = []

    def go(role: int) -> None:
        try:
            results[role] = work[role]()  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)
            channels[role].close()

    threads = [threading.Thread(target=go, args=(role,), daemon=True) for role in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results


def infer(
    plan: Compiled,
    raw: Mapping[str, Tensor],
    query: Query,
    labels: Tensor | None = None,
    random: SecureRandom | None = None,
) -> PairResult:
    """Answer one query with both parties in this process.

    Args:
        plan: The compiled model.
        raw: The client's input by field, each of shape `(query.batch, ...)`.
        query: What is asked.
        labels: Label embeddings of length 1, shape `(query.labels, width)`.
        random: Source of secrets; the process's own by default.

    Returns:
        What the client learned, and what it cost.

    Example:
        >>> from secure.smpc import Query, compile, infer, register
        >>> import torch
        >>> class TinyProbe(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(4, 2)
        ...     def forward(self, features):
        ...         return self.layer(features)
        >>> @register("TinyProbe")
        ... def tiny(builder, module, batch, path):
        ...     x = builder.real(batch["features"], "features")
        ...     return builder.linear(x, module.layer.weight, module.layer.bias, "layer")
        >>> model, x = TinyProbe().eval(), torch.randn(3, 4)
        >>> plan = compile(model, x)
        >>> result = infer(plan, {"features": x}, Query("embedding", batch=3))
        >>> bool((result.value - model(x)).abs().max() < 1e-3)
        True
    """
    random = random or SecureRandom()
    program, owner = plan.program, plan.owner()
    needs = _query.requirements(program, query)
    masks = weight_masks(random.token(KEY_BYTES), {k: w.shape for k, w in program.weights.items()})
    masked = {name: owner.encoded[name] - mask for name, mask in masks.items()}
    server, client = deal_pair(needs.items, masks, random)
    server.preload()
    client.preload(masked)
    channels = PairChannel.pair()

    def serve() -> None:
        party = Party(0, channels[0], server, owner.ready)
        _query.answer(program, party, query, owner=owner, labels=labels)

    def ask() -> Tensor | None:
        party = Party(1, channels[1], client, masked)
        return _query.answer(program, party, query, raw=raw)

    start = time.perf_counter()
    _, value = run_both({0: serve, 1: ask}, channels)
    seconds = time.perf_counter() - start
    if not isinstance(value, Tensor):
        raise TypeError("the client learned nothing: this is a bug")
    return PairResult(value, channels[0].traffic, channels[1].traffic, seconds)
