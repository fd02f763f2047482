"""Evaluation keys: what a server needs to compute, and nothing that decrypts."""

import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure.he._pack import pack, packed_bytes, unpack
from secure.he._seal import SEED_BYTES, engine, galois_element
from secure.he.errors import MissingKeyError, WireError
from secure.he.params import HEParams
from secure.he.plans import Plan
from secure.he.wire import Envelope, Kind, require_same_parameters

_HEAD = struct.Struct("<BHBB")
_MAX_STEPS = 4096
# Residues (primes, N) of the first polynomial, and the seed of the second.
Part = tuple[NDArray[np.uint64], bytes]


@dataclass(frozen=True, eq=False)
class EvaluationKeys:
    """Rotation keys of chosen steps, and where asked a relinearisation and a public key.

    Attributes:
        params: Encryption parameters.
        fingerprint: 16 bytes that name the secret key.
        steps: Rotations that the keys allow, ascending.
        rotation_parts: One part a digit, step by step.
        relin_parts: One part a digit, or empty.
        public_key: Residues `(2, primes, N)`, or None.

    Guarantees:
        Under the circular security that every CKKS library assumes, these keys give no help in
        decrypting. They are public, and meant to be sent.
    """

    params: HEParams
    fingerprint: bytes
    steps: tuple[int, ...]
    rotation_parts: tuple[Part, ...] = field(repr=False)
    relin_parts: tuple[Part, ...] = field(default=(), repr=False)
    public_key: NDArray[np.uint64] | None = field(default=None, repr=False)

    def require(self, plan: Plan) -> None:
        """Refuse keys that do not do for a plan.

        Raises:
            ParametersMismatchError: Made under other parameters.
            MissingKeyError: A rotation or the relinearisation key is missing.
        """
        require_same_parameters(self.params.identity, plan.params.identity, "the evaluation key")
        missing = sorted(set(plan.steps) - set(self.steps))
        if missing:
            raise MissingKeyError(
                f"{len(missing)} rotation keys are missing, the first for step {missing[0]}: "
                "make them with HEClient.evaluation_keys(plan)"
            )
        if plan.relinearises and not self.relin_parts:
            raise MissingKeyError(
                "no relinearisation key: make it with HEClient.evaluation_keys(plan)"
            )

    @cached_property
    def galois(self) -> Any:
        """SEAL's rotation keys."""
        seal = engine(self.params)
        degree = self.params.poly_modulus_degree
        digits = len(self.params.data_bits)
        table = [
            ((galois_element(step, degree) - 1) // 2, rank) for rank, step in enumerate(self.steps)
        ]
        table.sort()
        parts = [
            part
            for _, rank in table
            for part in self.rotation_parts[rank * digits : (rank + 1) * digits]
        ]
        positions = [position for position, _ in table]
        return seal.join_switch_keys(seal.api.GaloisKeys(), parts, positions, degree)

    @cached_property
    def relin(self) -> Any:
        """SEAL's relinearisation key."""
        seal = engine(self.params)
        return seal.join_switch_keys(seal.api.RelinKeys(), self.relin_parts, [0], 1)

    @cached_property
    def zero_encryptor(self) -> Any:
        """SEAL's encryptor under the public key.

        Raises:
            MissingKeyError: No public key was sent.
        """
        if self.public_key is None:
            raise MissingKeyError(
                "no public key: make it with HEClient.evaluation_keys(plan, public=True)"
            )
        seal = engine(self.params)
        return seal.api.Encryptor(seal.context, seal.join_public_key(self.public_key))

    def to_bytes(self) -> bytes:
        """Serialize."""
        params = self.params.to_bytes()
        head = _HEAD.pack(
            len(params), len(self.steps), bool(self.relin_parts), self.public_key is not None
        )
        parts = [head, params, np.asarray(self.steps, dtype="<u4").tobytes()]
        for residues, seed in (*self.rotation_parts, *self.relin_parts):
            parts += [seed, _pack_rows(residues, self.params.coeff_bits)]
        if self.public_key is not None:
            parts += [_pack_rows(poly, self.params.coeff_bits) for poly in self.public_key]
        payload = b"".join(parts)
        return Envelope(
            Kind.EVALUATION_KEYS, self.params.identity, self.fingerprint, payload
        ).to_bytes()

    @classmethod
    def from_bytes(
        cls, data: bytes | memoryview, params: HEParams | None = None
    ) -> "EvaluationKeys":
        """Read what `to_bytes` wrote, checking every field and every residue.

        Args:
            data: The message.
            params: Parameters that it must have been made under; None takes its own, which are
                checked like any others.

        Raises:
            WireError: Damaged, truncated or of another format.
            ParametersMismatchError: Made under other parameters than `params`.
            InsecureParametersError: Its parameters are under 128 bits.
        """
        envelope = Envelope.from_bytes(data, Kind.EVALUATION_KEYS)
        if params is not None:
            require_same_parameters(envelope.parameters, params.identity, "the evaluation key")
        body = memoryview(envelope.payload)
        if len(body) < _HEAD.size:
            raise WireError("the keys end before their header")
        params_bytes, count, has_relin, has_public = _HEAD.unpack_from(body)
        at = _HEAD.size + params_bytes + 4 * count
        if count > _MAX_STEPS or has_relin > 1 or has_public > 1 or len(body) < at:
            raise WireError("the keys' header is out of range")
        params = HEParams.from_bytes(bytes(body[_HEAD.size : _HEAD.size + params_bytes]))
        require_same_parameters(envelope.parameters, params.identity, "the evaluation key")
        steps = np.frombuffer(body[at - 4 * count : at], dtype="<u4").tolist()
        if steps != sorted(set(steps)) or any(not 0 < step < params.slots for step in steps):
            raise WireError("rotation steps must ascend and lie in (0, slots)")
        if not params.rotates and (steps or has_relin):
            raise WireError("these parameters have no special prime, so no switching keys")
        width = sum(packed_bytes(params.poly_modulus_degree, bits) for bits in params.coeff_bits)
        digits = len(params.data_bits)
        rotation, relin = count * digits, has_relin * digits
        due = (rotation + relin) * (SEED_BYTES + width) + 2 * has_public * width
        if len(body) - at != due:
            raise WireError(f"the keys take {due} bytes, got {len(body) - at}")
        parts: list[Part] = []
        for _ in range(rotation + relin):
            seed = bytes(body[at : at + SEED_BYTES])
            at += SEED_BYTES
            parts.append((_unpack_rows(body[at : at + width], params), seed))
            at += width
        public = None
        if has_public:
            halves = (body[at : at + width], body[at + width :])
            public = np.stack([_unpack_rows(half, params) for half in halves])
        return cls(
            params,
            envelope.fingerprint,
            tuple(steps),
            tuple(parts[:rotation]),
            tuple(parts[rotation:]),
            public,
        )


def _pack_rows(residues: NDArray[np.uint64], bits: tuple[int, ...]) -> bytes:
    return b"".join(pack(row, width) for row, width in zip(residues, bits, strict=True))


def _unpack_rows(data: memoryview, params: HEParams) -> NDArray[np.uint64]:
    degree, primes = params.poly_modulus_degree, engine(params).key_primes
    rows, at = [], 0
    for bits, prime in zip(params.coeff_bits, primes, strict=True):
        size = packed_bytes(degree, bits)
        rows.append(unpack(data[at : at + size], degree, bits, prime))
        at += size
    return np.stack(rows)
