"""One inference: which program, on how many inputs, and what of its result leaves."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch import Tensor

from secure.errors import ParameterError
from secure.smpc import _norm, _ranking, _ring
from secure.smpc._attention import matrix_product
from secure.smpc._channel import Traffic
from secure.smpc._execute import Executor, Owner
from secure.smpc._items import Item, MatrixProduct
from secure.smpc._material import CLIENT, SERVER
from secure.smpc._party import CountingParty, Party, Share
from secure.smpc.errors import WireError
from secure.smpc.program import Program, meta_weights

REVEALS = ("embedding", "scores", "top")
MAX_LABELS = 256
MAX_BATCH = 64
_LABEL_BITS = 16
_LENGTH_TOLERANCE = 0.01
#: Words of one step for one input: a tower of 1,024 tokens takes 2^30.
_MAX_STEP_WORDS = 1 << 31
#: What running a damaged program on shapes may raise.
_UNFIT = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,  # with it ParameterError
)
#: Fraction bits of what is revealed.
VALUE_BITS = 16


@dataclass(frozen=True)
class Query:
    """What an inference reveals, to the client alone.

    Attributes:
        reveal: `embedding` (the program's whole output), `scores` (cosines with the labels, or the
            logits where the program has no labels) or `top` (the k best labels in order, without
            any score).
        k: How many labels, for `top`.
        labels: Number of label embeddings that the server holds; 0 where the program's output
            already scores its own classes.
        batch: Inputs at once, 1 to 64.

    Raises:
        ParameterError: A value is out of range, or they don't fit together.

    Example:
        >>> Query("top", k=1, labels=10).batch
        1
    """

    reveal: str
    k: int = 1
    labels: int = 0
    batch: int = 1

    def __post_init__(self) -> None:
        if self.reveal not in REVEALS:
            raise ParameterError(f"reveal is one of {', '.join(REVEALS)}, got {self.reveal!r}")
        for name, least, most in (("labels", 0, MAX_LABELS), ("batch", 1, MAX_BATCH)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ParameterError(f"{name} is an integer in [{least}, {most}], got {value!r}")
        if type(self.k) is not int or self.k < 1:
            raise ParameterError(f"k is at least 1, got {self.k!r}")
        if self.reveal == "embedding" and self.labels:
            raise ParameterError("an embedding is revealed without labels: labels must be 0")

    def check(self, program: Program) -> None:
        """Check that a program can answer.

        Raises:
            ParameterError: The output's shape or range doesn't allow what is asked.
        """
        if self.reveal == "embedding":
            return
        if len(program.output_shape) != 1:
            raise ParameterError("scores need a program whose output is one vector an input")
        if self.reveal == "scores" and self.labels and program.length is None:
            raise ParameterError(
                "cosines need an output whose length stays within a factor: this program's came "
                "near zero in the calibration; ask for top, or for its own scores without labels"
            )
        candidates = self.labels or program.output_shape[0]
        if self.reveal == "top":
            if self.k > candidates:
                raise ParameterError(f"k is at most the {candidates} candidates, got {self.k}")
            if candidates > MAX_LABELS:
                raise ParameterError(f"ranking takes at most {MAX_LABELS} candidates")
            # A product with a label of length 1 is at most the output's length.
            growth = (program.output_shape[0].bit_length() + 1) // 2 if self.labels else 0
            if program.output_magnitude + growth > _ranking.SCORE_LIMIT_BITS:
                raise ParameterError("the output is too large to rank: scale its last layer down")

    def to_wire(self) -> dict:
        """Return the query as a JSON object."""
        return asdict(self)

    @classmethod
    def from_wire(cls, value: object) -> "Query":
        """Read a query that a peer sent.

        Raises:
            WireError: Not a query.
        """
        if not isinstance(value, dict) or set(value) != {"reveal", "k", "labels", "batch"}:
            raise WireError("the peer sent something else than a query")
        try:
            return cls(**value)
        except (TypeError, ParameterError) as error:
            raise WireError("the peer sent a query that is out of range") from error


def answer(
    program: Program,
    party: Party,
    query: Query,
    owner: Owner | None = None,
    raw: Mapping[str, Tensor] | None = None,
    labels: Tensor | None = None,
    progress: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> Tensor | None:
    """Compute one query.

    Args:
        program: The program.
        party: This party.
        query: What is asked.
        owner: The server's secrets (server only).
        raw: The client's input by field (client only).
        labels: The server's label embeddings, `(labels, width)`, of length 1 (server only).
            Lengths off by up to 1 % (half precision) are mended.
        progress: Called with ("computing", operations done, operations).

    Returns:
        On the client the result: float64 scores or embeddings, or int64 indices `(batch, k)`.
        None on the server.
    """
    if party.is_server and not party.counts_only:
        labels = require_labels(program, query, labels)
    executor = Executor(program, party, owner, query.batch)
    return finish(program, party, query, executor.run(executor.inputs(raw), progress), labels)


def require_labels(program: Program, query: Query, labels: Tensor | None) -> Tensor | None:
    """Check the server's label embeddings, and bring them to length 1 exactly.

    Raises:
        ParameterError: There are none where the query has labels, or they are of another shape,
            not finite, or not of length 1.
    """
    if not query.labels:
        if labels is not None:
            raise ParameterError("this query has no labels, but label embeddings were given")
        return None
    expected = (query.labels, program.output_shape[-1])
    if labels is None:
        raise ParameterError(f"the query has {query.labels} labels: give their embeddings")
    if tuple(labels.shape) != expected:
        raise ParameterError(
            f"label embeddings have shape {tuple(labels.shape)}, expected {expected}"
        )
    labels = labels.detach().to(torch.float64)
    lengths = labels.norm(dim=-1, keepdim=True)
    if not bool(((lengths - 1).abs() <= _LENGTH_TOLERANCE).all()):
        raise ParameterError(
            "label embeddings are of length 1, got lengths from "
            f"{float(lengths.min()):.3g} to {float(lengths.max()):.3g}; normalise them"
        )
    return labels / lengths


def finish(
    program: Program, party: Party, query: Query, result: Share, labels: Tensor | None = None
) -> Tensor | None:
    """Turn a program's output into what the query reveals, and reveal it to the client."""
    if query.reveal == "scores" and query.labels:
        result, _ = _norm.normalise(party, result, _length(program), None)
        (result,) = party.run(party.rescale(result, _LABEL_BITS + 4))
    if query.labels:
        result = _score(party, result, query.labels, labels)
    if query.reveal != "top":
        # An untruncated product would show more of the labels than the score.
        if result.bits != VALUE_BITS:
            (result,) = party.run(party.rescale(result, VALUE_BITS))
        return party.reveal(result)
    best = _ranking.top_k(party, result, query.k)
    shown = party.reveal(Share(best, 0))
    return None if shown is None else shown.to(torch.int64)


def _length(program: Program) -> _norm.NormParameters:
    if program.length is None:
        raise ParameterError("this program's output has no length: it is not one vector")
    return program.length


def _score(party: Party, embedding: Share, count: int, labels: Tensor | None) -> Share:
    """Return products of embeddings with the server's labels: `(batch, labels)`."""
    width = embedding.shape[-1]
    device = embedding.value.device
    table = torch.zeros(width, count, dtype=torch.int64, device=device)
    if labels is not None:
        table = _ring.encode(labels.T.contiguous(), _LABEL_BITS)
    held = party.take(MatrixProduct(embedding.shape, (width, count)))
    e, f = party.run(party.opening(embedding.value, held["a"]), party.opening(table, held["b"]))
    return Share(matrix_product(party, held, e, f), embedding.bits + _LABEL_BITS)


@dataclass(frozen=True)
class Requirements:
    """What a query takes, counted by running its code on shapes.

    Attributes:
        items: Correlated randomness, in order.
        server: What the server sends and receives.
        client: The same of the client.
    """

    items: tuple[Item, ...]
    server: Traffic
    client: Traffic


@lru_cache(maxsize=32)
def requirements(program: Program, query: Query) -> Requirements:
    """Count a query's rounds, bytes and correlated randomness without running it.

    Raises:
        ParameterError: The program can't answer the query.
        WireError: The program's operations don't fit together, its output is of another shape than
            it says, or a step of it takes more memory than any model's.
    """
    query.check(program)
    try:
        return _count(program, query)
    except _UNFIT as error:
        raise WireError(
            f"the program can't be run ({type(error).__name__} on its shapes): it is damaged; "
            "compile it again, or ask its owner for it again"
        ) from error


def _count(program: Program, query: Query) -> Requirements:
    found = []
    for role in (SERVER, CLIENT):
        weights = meta_weights(program)
        if role == SERVER:
            weights = {k: w if w.dim() == 1 else _ring.SmallMatrix(w) for k, w in weights.items()}
        party = CountingParty(role, weights)
        # The server's constants count on their shapes too, so that they fit or are refused.
        owner = Owner({}, _meta_constants(program), {}) if role == SERVER else None
        executor = Executor(program, party, owner, query.batch)
        result = executor.run(executor.inputs(None))
        if result.shape != (query.batch, *program.output_shape):
            raise ValueError("the output is of another shape than the program says")
        finish(program, party, query, result)
        found.append(party)
    server, client = found
    if server.items != client.items:
        raise ParameterError("the two parties' randomness differs: this is a bug")
    words = max((sum(math.prod(p.shape) for p in item.pieces) for item in server.items), default=0)
    if words > _MAX_STEP_WORDS * query.batch:
        raise ValueError("one of its steps is far too large")
    return Requirements(tuple(server.items), server.count.traffic, client.count.traffic)


def _meta_constants(program: Program) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in program.constants.items()}
