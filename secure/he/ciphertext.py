"""An encrypted value as it travels: residues, and everything needed to refuse a wrong use."""

import math
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure.he._pack import pack, packed_bytes, unpack
from secure.he._seal import SEED_BYTES, engine
from secure.he.errors import LayoutError, WireError
from secure.he.params import HEParams
from secure.he.plans import TAG_BYTES, Plan, plan_from_tag
from secure.he.wire import Envelope, Kind, require_same_key, require_same_parameters

_HEAD = struct.Struct("<BBBdI")


@dataclass(frozen=True, eq=False)
class Piece:
    """One SEAL ciphertext in numpy.

    Attributes:
        residues: Shape `(2, primes, N)`, or `(1, primes, N)` where the second polynomial is
            given by a seed. NTT form, each residue below its prime, dtype uint64.
        seed: 64 bytes that SEAL expands to the second polynomial, or empty. Public.
    """

    residues: NDArray[np.uint64]
    seed: bytes = b""


@dataclass(frozen=True, eq=False)
class Encrypted:
    """An encrypted input or result.

    Attributes:
        plan: How the values lie in the slots.
        fingerprint: 16 bytes that name the key it is encrypted under.
        is_result: Whether a layer has been applied: only a result can be read by its plan.
        level: Rescalings done.
        scale: Scale of the plaintext.
        pieces: The ciphertexts.

    Guarantees:
        Without the secret key the values are hidden (IND-CPA, at the parameters' security
        level); shape, layout, scale and number of ciphertexts are not. Nothing stops whoever
        holds a ciphertext from altering it: the owner of the key must know, by the channel,
        who computed what.
    """

    plan: Plan
    fingerprint: bytes
    is_result: bool
    level: int
    scale: float
    pieces: tuple[Piece, ...] = field(repr=False)

    @property
    def params(self) -> HEParams:
        """Encryption parameters."""
        return self.plan.params

    def require_input_of(self, plan: Plan, fingerprint: bytes | None) -> None:
        """Refuse anything but a fresh input of `plan`, under the key of `fingerprint`.

        Raises:
            ParametersMismatchError: Made under other parameters.
            KeyMismatchError: Made under another key than the evaluation keys.
            LayoutError: Packed for another layer, or already a result.
        """
        require_same_parameters(self.params.identity, plan.params.identity, "the ciphertext")
        if fingerprint is not None:
            require_same_key(self.fingerprint, fingerprint, "the ciphertext")
        if self.is_result:
            raise LayoutError("this ciphertext is a result already: decrypt and encrypt it anew")
        if self.plan.tag != plan.tag:
            raise LayoutError(f"packed for {self.plan}, not for {plan}")

    def load(self) -> list[Any]:
        """Return the SEAL ciphertexts."""
        seal = engine(self.params)
        return [
            seal.load_ciphertext(piece.residues, piece.seed, self.level, self.scale)
            for piece in self.pieces
        ]

    def to_bytes(self) -> bytes:
        """Serialize; residues take exactly the bits of their primes."""
        bits = engine(self.params).bits(self.level)
        seeded = bool(self.pieces[0].seed)
        head = _HEAD.pack(self.is_result, self.level, seeded, self.scale, len(self.pieces))
        parts = [self.plan.tag, head]
        for piece in self.pieces:
            parts.append(piece.seed)
            for poly in piece.residues:
                parts += [pack(row, width) for row, width in zip(poly, bits, strict=True)]
        payload = b"".join(parts)
        return Envelope(Kind.CIPHERTEXT, self.params.identity, self.fingerprint, payload).to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, params: HEParams) -> "Encrypted":
        """Read what `to_bytes` wrote, checking every field and every residue.

        Args:
            data: The message.
            params: Parameters that it must have been made under.

        Raises:
            WireError: Damaged, truncated or of another format.
            ParametersMismatchError: Made under other parameters.
            LayoutError: Its layout does not go with these parameters.
        """
        envelope = Envelope.from_bytes(data, Kind.CIPHERTEXT)
        require_same_parameters(envelope.parameters, params.identity, "the ciphertext")
        payload = memoryview(envelope.payload)
        if len(payload) < TAG_BYTES + _HEAD.size:
            raise WireError("the ciphertext ends before its header")
        plan = plan_from_tag(params, bytes(payload[:TAG_BYTES]))
        result, level, seeded, scale, count = _HEAD.unpack_from(payload, TAG_BYTES)
        if result > 1 or seeded > 1 or level > params.depth:
            raise WireError("the ciphertext's header is out of range")
        if not (math.isfinite(scale) and 1.0 <= scale < 2.0 ** sum(params.data_bits)):
            raise WireError("the ciphertext's scale is out of range")
        if not result and (level or scale != 2.0**params.scale_bits):
            raise WireError("an input has level 0 and the scale of its parameters")
        due = plan.output_ciphertexts if result else plan.input_ciphertexts
        if count != due:
            raise WireError(f"{count} ciphertexts where this layout has {due}")
        pieces = _read_pieces(payload[TAG_BYTES + _HEAD.size :], params, level, count, bool(seeded))
        return cls(plan, envelope.fingerprint, bool(result), level, scale, pieces)


def _read_pieces(
    body: memoryview, params: HEParams, level: int, count: int, seeded: bool
) -> tuple[Piece, ...]:
    seal = engine(params)
    degree, bits, primes = params.poly_modulus_degree, seal.bits(level), seal.primes(level)
    polys, seed_bytes = (1, SEED_BYTES) if seeded else (2, 0)
    each = seed_bytes + polys * sum(packed_bytes(degree, width) for width in bits)
    if len(body) != count * each:
        raise WireError(f"{count} ciphertexts take {count * each} bytes, got {len(body)}")
    pieces = []
    for start in range(0, count * each, each):
        at = start + seed_bytes
        seed = bytes(body[start:at])
        residues = np.empty((polys, len(primes), degree), dtype=np.uint64)
        for poly in residues:
            for row, width, prime in zip(poly, bits, primes, strict=True):
                size = packed_bytes(degree, width)
                row[:] = unpack(body[at : at + size], degree, width, prime)
                at += size
        # SEAL refuses a ciphertext that anyone can read; here it is refused before SEAL is asked.
        if not seeded and not residues[1].any():
            raise WireError("a ciphertext without its second polynomial is no ciphertext")
        pieces.append(Piece(residues, seed))
    return tuple(pieces)
