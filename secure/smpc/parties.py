"""The two parties as processes: the model's owner serves, the client asks.

A connection is one session: the client states program, query and parcel; the owner checks them
against its policy, sends the masked weights if the client doesn't hold them yet, and both compute.
Nothing that depends on the input is sent before every check has passed on both sides. Several
clients are answered at once, and none of them ends the service or keeps it from the others.
"""

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secure.errors import IntegrityError, ParameterError, PolicyError, SecureError
from secure.smpc import _query, _tables, _wire, tls
from secure.smpc._channel import Channel, Traffic
from secure.smpc._execute import prepare, require_mapped
from secure.smpc._material import Material
from secure.smpc._party import Party
from secure.smpc._query import Query, requirements
from secure.smpc._remote import parse_identifier
from secure.smpc._service import Limits, Log, Service
from secure.smpc.errors import PlanMismatchError, SetupChangedError, WireError
from secure.smpc.parcels import Setup, Source
from secure.smpc.plan import Plan
from secure.smpc.program import Program

PROTOCOL = 1
MAX_LABEL_CHARACTERS = 256
#: Turns label texts into embeddings of length 1: `(labels, width)`.
EmbedLabels = Callable[[Sequence[str]], Tensor]
Progress = Callable[[str, int, int], None]


def _weight_shapes(program: Program) -> list[_wire.Expected]:
    return [(program.weights[name].shape, 64) for name in sorted(program.weights)]


def _label_problem(label: object) -> str | None:
    """Return what is wrong with a label; None where nothing is."""
    if not isinstance(label, str) or not 0 < len(label) <= MAX_LABEL_CHARACTERS:
        return f"a label is a text of 1 to {MAX_LABEL_CHARACTERS} characters"
    if any("\ud800" <= each <= "\udfff" for each in label):
        return "a label has half a character (a lone surrogate)"
    return None


@dataclass(frozen=True, repr=False)
class _Masked:
    """A set-up and the weights masked with it: D = W − B by name."""

    setup: Setup
    weights: Mapping[str, Tensor]


class Owner:
    """The model's owner: answers queries on a plan.

    Args:
        plan: The compiled model.
        source: Where its material comes from.
        embed_labels: How to embed labels; None where clients may not send any.
        reveals: Which kinds of result it hands out.
        max_k: Longest ranking it hands out.
        limits: What it gives at once, and of it to one client.
    """

    def __init__(
        self,
        plan: Plan,
        source: Source,
        embed_labels: EmbedLabels | None = None,
        reveals: tuple[str, ...] = ("top",),
        max_k: int = 1,
        limits: Limits | None = None,
    ) -> None:
        unknown = set(reveals) - set(_query.REVEALS)
        if unknown:
            raise ParameterError(f"unknown kinds of result: {', '.join(sorted(unknown))}")
        self._plan, self._source, self._embed_labels = plan, source, embed_labels
        if max_k < 1:
            raise ParameterError(f"max_k is at least 1, got {max_k}")
        self._reveals, self._max_k = reveals, max_k
        self._limits = limits or Limits()
        self._secrets = plan.owner()
        self._lock = threading.Lock()
        self._embedding = threading.Lock()
        self._masked = self._mask(source.setup(plan.program))

    def _mask(self, setup: Setup) -> _Masked:
        masks = setup.masks(self._plan.program)
        encoded = self._secrets.encoded
        return _Masked(setup, {name: encoded[name] - mask for name, mask in masks.items()})

    def _claim(self, query: Query, parcel: bytes) -> tuple[_Masked, Material]:
        """Take this side's half of a parcel; a dealer that was restarted has another set-up."""
        program, masked = self._plan.program, self._masked
        try:
            return masked, self._source.claim(program, query, masked.setup.identifier, parcel)
        except SetupChangedError:
            with self._lock:
                setup = self._source.setup(program)
                if setup.identifier == masked.setup.identifier:
                    raise
                if setup.identifier != self._masked.setup.identifier:
                    self._masked = self._mask(setup)
                masked = self._masked
        return masked, self._source.claim(program, query, masked.setup.identifier, parcel)

    def answer(self, channel: Channel) -> None:
        """Answer one client.

        Raises:
            SecureError: Anything that the client, the dealer or the network did wrong.
        """
        hello = _wire.unpack_json(channel.receive(_wire.MAX_JSON_BYTES, _wire.JSON))
        program = self._plan.program
        named = hello.get("program")
        if hello.get("protocol") == PROTOCOL and isinstance(named, str) and named != program.digest:
            # The client is told which program it should hold, and raises the same error.
            channel.send(_wire.pack_json(self._reply(self._masked)), _wire.JSON)
        query, labels, parcel = self._check(hello)
        embeddings = None
        if query.labels and self._embed_labels is not None:
            with self._embedding:  # a tokenizer is for one thread at a time
                embeddings = self._embed_labels(labels).detach().to(torch.float64)
        masked, material = self._claim(query, parcel)
        try:
            # All of it at once: the dealer doesn't wait for this client.
            material.preload()
            channel.send(_wire.pack_json(self._reply(masked)), _wire.JSON)
            wanted = _wire.unpack_json(channel.receive(_wire.MAX_JSON_BYTES, _wire.JSON))
            if wanted.get("weights") is True:
                names = sorted(program.weights)
                channel.send(_wire.pack([(masked.weights[n], 64) for n in names]), _wire.BLOB)
            channel.send(_wire.pack_json({"ready": True}), _wire.JSON)
            party = Party(0, channel, material, self._secrets.ready)
            _query.answer(program, party, query, owner=self._secrets, labels=embeddings)
        finally:
            material.close()

    def _reply(self, masked: _Masked) -> dict:
        return {
            "protocol": PROTOCOL,
            "program": self._plan.program.digest,
            "setup": masked.setup.identifier.hex(),
        }

    def _check(self, hello: dict) -> tuple[Query, list[str], bytes]:
        """Check a client's opening message against the program and the policy."""
        if hello.get("protocol") != PROTOCOL:
            raise WireError("the client speaks another version of this protocol")
        self._plan.program.require(str(hello.get("program")))
        if hello.get("tables") != _tables.fingerprint():
            raise PlanMismatchError("the two machines' tables of sines differ; use like platforms")
        query = Query.from_wire(hello.get("query"))
        if query.reveal not in self._reveals:
            raise PolicyError(f"this owner doesn't reveal {query.reveal!r}")
        if query.reveal == "top" and query.k > self._max_k:
            raise PolicyError(f"this owner ranks at most {self._max_k}, asked for {query.k}")
        self._limits.check(query)
        query.check(self._plan.program)
        labels = hello.get("labels")
        if not isinstance(labels, list) or len(labels) != query.labels:
            raise WireError("the client sent another number of labels than its query says")
        for label in labels:
            wrong = _label_problem(label)
            if wrong is not None:
                raise WireError(wrong)
        if labels and self._embed_labels is None:
            raise PolicyError("this owner embeds no labels")
        if not labels and self._embed_labels is not None and query.reveal != "embedding":
            # Without labels the scores would be the embedding itself.
            raise PolicyError("this owner scores labels: send some")
        return query, labels, parse_identifier(hello.get("parcel"))

    def serve(
        self,
        listener: socket.socket,
        identity: tls.Identity,
        stop: threading.Event,
        sessions: int | None = None,
        timeout_s: float = 60.0,
        log: Log = lambda text: None,
    ) -> None:
        """Answer clients until `stop` is set; no single one ends or blocks it (see `Limits`).

        Args:
            listener: From `tls.listen`.
            identity: The server's.
            stop: Set to end.
            sessions: End after so many sessions of clients with a certificate.
            timeout_s: Longest silence of a client.
            log: Called with a line for every session and every refusal; no secret is in it.
        """

        def handle(channel: Channel, peer: tls.Peer) -> str:
            self.answer(channel)
            return f"answered a query in {channel.traffic.rounds} rounds"

        Service(identity, ("client",), handle, self._limits, timeout_s, log).serve(
            listener, stop, sessions
        )


@dataclass(frozen=True)
class Answer:
    """What a client learned.

    Attributes:
        value: float64 scores or embeddings, or int64 indices `(batch, k)`.
        traffic: Rounds and bytes of the computation itself, without set-up and handshake.
        seconds: Wall time of that computation.
    """

    value: Tensor
    traffic: Traffic
    seconds: float


class Client:
    """The client: holds the program, its inputs and, after the first query, the masked weights.

    Args:
        program: The program, as the owner published it.
        source: Where its material comes from.
        connect: Opens a link to the owner, for example `lambda: tls.connect(...)`.
        progress: Called with (task, done, total): `weights`, `material`, `computing`.
    """

    def __init__(
        self,
        program: Program,
        source: Source,
        connect: Callable[[], Channel],
        progress: Progress = lambda task, done, total: None,
    ) -> None:
        self._program, self._source, self._connect = program, source, connect
        self._progress = progress
        self._masked: dict[str, Tensor] | None = None
        self._setup = b""

    def ask(self, raw: Mapping[str, Tensor], query: Query, labels: Sequence[str] = ()) -> Answer:
        """Answer one query on an input that stays here.

        Args:
            raw: Inputs by field, each of shape `(query.batch, ...)`.
            query: What is asked.
            labels: Label texts, as many as `query.labels`; the owner reads them.

        Raises:
            ParameterError: An input of the wrong size or out of range; nothing was sent.
            WireError: The program can't be run; nothing was sent.
            PlanMismatchError: The owner serves another program; nothing secret was sent.
            SecureError: The owner, the dealer or the network failed or refused.
        """
        query.check(self._program)
        if len(labels) != query.labels:
            raise ParameterError(f"the query says {query.labels} labels, got {len(labels)}")
        for label in labels:
            wrong = _label_problem(label)
            if wrong is not None:
                raise ParameterError(f"{wrong}, got {label!r:.80}")
        requirements(self._program, query)
        require_mapped(self._program, raw)
        for spec in self._program.inputs:
            if len(raw.get(spec.field, ())) != query.batch:
                raise ParameterError(f"the query says {query.batch} inputs of {spec.field}")
            prepare(spec, raw)
        channel = self._connect()
        try:
            parcel = self._source.choose(self._program, query)
            try:
                return self._run(channel, raw, query, labels, parcel)
            except BaseException:
                self._source.discard(parcel)
                raise
        except SecureError as error:
            channel.report(str(error))
            raise
        finally:
            channel.close()

    def _run(
        self,
        channel: Channel,
        raw: Mapping[str, Tensor],
        query: Query,
        labels: Sequence[str],
        parcel: bytes,
    ) -> Answer:
        hello = {
            "protocol": PROTOCOL,
            "program": self._program.digest,
            "tables": _tables.fingerprint(),
            "query": query.to_wire(),
            "labels": list(labels),
            "parcel": parcel.hex(),
        }
        channel.send(_wire.pack_json(hello), _wire.JSON)
        reply = _wire.unpack_json(channel.receive(_wire.MAX_JSON_BYTES, _wire.JSON))
        if reply.get("protocol") != PROTOCOL:
            raise WireError("the owner speaks another version of this protocol")
        self._program.require(str(reply.get("program")))
        setup = parse_identifier(reply.get("setup"))
        wanted = self._masked is None or setup != self._setup
        channel.send(_wire.pack_json({"weights": wanted}), _wire.JSON)
        if wanted:
            self._progress("weights", 0, 1)
            expected = _weight_shapes(self._program)
            body = channel.receive(_wire.body_bytes(expected), _wire.BLOB)
            tensors = _wire.unpack(body, expected)
            self._masked = dict(zip(sorted(self._program.weights), tensors, strict=True))
            self._setup = setup
            self._progress("weights", 1, 1)
        self._progress("material", 0, 1)
        material = self._source.claim(self._program, query, setup, parcel)
        try:
            material.preload(self._masked)
            if _wire.unpack_json(channel.receive(_wire.MAX_JSON_BYTES, _wire.JSON)) != {
                "ready": True
            }:
                raise IntegrityError("the owner isn't ready")
            self._progress("material", 1, 1)
            channel.traffic = Traffic()
            start = time.perf_counter()
            party = Party(1, channel, material, self._masked or {})
            value = _query.answer(self._program, party, query, raw=raw, progress=self._progress)
            seconds = time.perf_counter() - start
        finally:
            material.close()
        if value is None:
            raise IntegrityError("the owner revealed nothing")
        return Answer(value, channel.traffic, seconds)
