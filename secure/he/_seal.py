"""The one place that touches SEAL, through TenSEAL's `sealapi`.

SEAL never sees bytes that came over a network. What arrives is checked, word for word, by this
package; SEAL then loads a stream that `_frame` has written, with its header, its sizes and its
parameter id, so that no hostile length, compressed block or version reaches native code.
"""

import contextlib
import ctypes
import functools
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure.errors import IntegrityError, MissingExtraError, SecureError
from secure.he.errors import MissingKeyError
from secure.he.params import HEParams

_HEADER = struct.Struct("<HBBBBHQ")
_MEMBERS = struct.Struct("<32sBQQQdQ")
_PLAIN = struct.Struct("<32sQd")
_MAGIC = 0xA15E
_ZSTD = 2
_PRNG_BLAKE2XB = 1
SEED_BYTES = 64


@functools.cache
def _api() -> Any:
    try:
        import tenseal.sealapi as api
    except ImportError as error:
        raise MissingExtraError("tenseal", "he") from error
    return api


@functools.cache
def _zstd() -> Any:
    """Return TenSEAL's own zstd: it saves nothing uncompressed, and exports the reader."""
    _api()
    import _sealapi_cpp

    library = ctypes.CDLL(_sealapi_cpp.__file__)
    library.ZSTD_decompress.restype = ctypes.c_size_t
    library.ZSTD_decompress.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    return library


@contextlib.contextmanager
def _memory_file() -> Iterator[tuple[int, str]]:
    """Yield a descriptor and its path: SEAL reads and writes paths only, and nothing hits disk."""
    descriptor = os.memfd_create("he")
    try:
        yield descriptor, f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _saved(thing: Any, expected: int) -> memoryview:
    """Return the body of what SEAL saves, decompressed, without its header."""
    with _memory_file() as (descriptor, path):
        thing.save(path)
        raw = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    magic, _, _, _, mode, _, _ = _HEADER.unpack_from(raw)
    if magic != _MAGIC:
        raise IntegrityError("SEAL wrote a stream of another format: check TenSEAL's version")
    body = memoryview(raw)[_HEADER.size :]
    if mode == _ZSTD:
        out = np.empty(expected, dtype=np.uint8)
        size = _zstd().ZSTD_decompress(out.ctypes.data, expected, bytes(body), len(body))
        body = out.data
        if size != expected:
            raise IntegrityError("SEAL's stream has another length: check TenSEAL's version")
    if len(body) != expected:
        raise IntegrityError(f"SEAL wrote {len(body)} bytes where {expected} were due")
    return body


@contextlib.contextmanager
def native_errors() -> Iterator[None]:
    """Turn what SEAL throws in the middle of a computation into `IntegrityError`.

    Keys and ciphertexts that are well formed and mean nothing can lead it there: a result
    without its second polynomial, for one.
    """
    try:
        yield
    except SecureError:
        raise
    except (RuntimeError, ValueError) as error:
        raise IntegrityError(f"SEAL refuses to compute: {error}") from error


class Engine:
    """SEAL under one set of parameters: context, encoder, evaluator, and residues in numpy.

    Level 0 is the fresh one, with all data primes; each rescaling drops the last prime.
    """

    def __init__(self, params: HEParams) -> None:
        api = _api()
        self.params = params
        self.api = api
        chosen = api.EncryptionParameters(api.SCHEME_TYPE.CKKS)
        chosen.set_poly_modulus_degree(params.poly_modulus_degree)
        chosen.set_coeff_modulus(
            api.CoeffModulus.Create(params.poly_modulus_degree, list(params.coeff_bits))
        )
        self.context = api.SEALContext(chosen, True, api.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise IntegrityError(
                f"SEAL refuses these parameters: {self.context.parameters_error_message()}"
            )
        self.encoder = api.CKKSEncoder(self.context)
        self.evaluator = api.Evaluator(self.context)
        key_data = self.context.key_context_data()
        self.key_primes = [prime.value() for prime in key_data.parms().coeff_modulus()]
        self._key_id = key_data.parms_id()
        self._level_ids = []
        data = self.context.first_context_data()
        while data is not None:
            self._level_ids.append(data.parms_id())
            data = data.next_context_data()
        self._version = self._own_version()

    def _own_version(self) -> tuple[int, int]:
        with _memory_file() as (descriptor, path):
            self.api.Plaintext().save(path)
            header = _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0))
        return header[2], header[3]

    # -- parameters -------------------------------------------------------------------------

    def primes(self, level: int = 0) -> list[int]:
        """Return the data primes at a level."""
        count = len(self.params.data_bits) - level
        return self.key_primes[:count]

    def bits(self, level: int = 0) -> tuple[int, ...]:
        """Return the bits of the data primes at a level."""
        return self.params.data_bits[: len(self.params.data_bits) - level]

    def level_id(self, level: int) -> list[int]:
        """Return SEAL's parameter id of a level."""
        return self._level_ids[level]

    # -- streams that SEAL loads --------------------------------------------------------------

    def _frame(self, body: bytes) -> bytes:
        size = _HEADER.size + len(body)
        return _HEADER.pack(_MAGIC, _HEADER.size, *self._version, 0, 0, size) + body

    def _members(
        self,
        parms_id: list[int],
        residues: NDArray[np.uint64],
        seed: bytes,
        scale: float,
        transformed: bool = True,
    ) -> bytes:
        primes = residues.shape[-2]
        head = _MEMBERS.pack(
            struct.pack("<4Q", *parms_id),
            transformed,
            2,
            self.params.poly_modulus_degree,
            primes,
            scale,
            1,  # BGV's correction factor, which CKKS leaves at 1
        )
        words = np.ascontiguousarray(residues, dtype="<u8").tobytes()
        body = head + self._frame(struct.pack("<Q", residues.size) + words)
        if seed:
            body += self._frame(bytes([_PRNG_BLAKE2XB]) + seed)
        return body

    def _load(self, thing: Any, body: bytes) -> Any:
        with _memory_file() as (descriptor, path):
            os.pwrite(descriptor, self._frame(body), 0)
            try:
                thing.load(self.context, path)
            except (RuntimeError, ValueError) as error:
                raise IntegrityError(f"SEAL refuses this object: {error}") from error
        return thing

    def _split(self, body: memoryview, primes: int, polys: int) -> tuple[NDArray[np.uint64], bytes]:
        """Return residues `(polys, primes, N)` and the seed of one saved ciphertext."""
        start = _MEMBERS.size + _HEADER.size + 8
        count = polys * primes * self.params.poly_modulus_degree
        words = np.frombuffer(body, dtype="<u8", count=count, offset=start)
        seed = bytes(body[-SEED_BYTES:]) if polys == 1 else b""
        return words.reshape(polys, primes, -1).astype(np.uint64), seed

    def _saved_size(self, primes: int, seeded: bool) -> int:
        words = (1 if seeded else 2) * primes * self.params.poly_modulus_degree
        tail = _HEADER.size + 1 + SEED_BYTES if seeded else 0
        return _MEMBERS.size + _HEADER.size + 8 + 8 * words + tail

    # -- ciphertexts ----------------------------------------------------------------------------

    def load_ciphertext(
        self, residues: NDArray[np.uint64], seed: bytes, level: int, scale: float
    ) -> Any:
        """Build a SEAL ciphertext.

        Args:
            residues: Shape `(2, primes, N)`, or `(1, primes, N)` with a seed: NTT form, each
                below its prime (the caller has checked).
            seed: 64 bytes that expand to the second polynomial, or empty.
            level: Rescalings done.
            scale: Scale of the plaintext.
        """
        body = self._members(self.level_id(level), residues, seed, scale)
        return self._load(self.api.Ciphertext(), body)

    def residues(self, ciphertext: Any, level: int) -> NDArray[np.uint64]:
        """Return the residues of a ciphertext of two polynomials: shape `(2, primes, N)`."""
        if ciphertext.size() != 2:
            raise IntegrityError(f"a ciphertext of {ciphertext.size()} polynomials can't be sent")
        primes = len(self.primes(level))
        return self._split(_saved(ciphertext, self._saved_size(primes, False)), primes, 2)[0]

    def seeded_residues(self, serializable: Any, level: int) -> tuple[NDArray[np.uint64], bytes]:
        """Return the first polynomial, `(1, primes, N)`, and the seed of the second."""
        primes = len(self.primes(level))
        return self._split(_saved(serializable, self._saved_size(primes, True)), primes, 1)

    def level_of(self, ciphertext: Any) -> int:
        """Return the number of rescalings that a ciphertext has been through."""
        return self._level_ids.index(ciphertext.parms_id())

    def encode(self, values: NDArray, scale: float, level: int = 0) -> Any:
        """Encode real or complex slot values, shape `(slots,)`."""
        plain = self.api.Plaintext()
        self.encoder.encode(values.tolist(), self.level_id(level), scale, plain)
        return plain

    def plain_residues(self, plain: Any, level: int) -> NDArray[np.uint64]:
        """Return the residues of an encoded plaintext: shape `(primes, N)`."""
        return self._plain_words(plain, len(self.primes(level)))

    def _plain_words(self, plain: Any, primes: int) -> NDArray[np.uint64]:
        degree = self.params.poly_modulus_degree
        start = _PLAIN.size + _HEADER.size + 8
        body = _saved(plain, start + 8 * primes * degree)
        return (
            np.frombuffer(body, dtype="<u8", offset=start).reshape(primes, degree).astype(np.uint64)
        )

    def to_ntt(self, coefficients: NDArray[np.uint64], level: int) -> NDArray[np.uint64]:
        """Return the residues, as SEAL keeps them, of polynomials given by their coefficients.

        Args:
            coefficients: Residues, shape `(primes, N)`, each below its prime.
            level: Rescalings done.
        """
        # SEAL transforms ciphertexts only; what the second polynomial is does not matter.
        pair = np.stack([coefficients, np.ones_like(coefficients)])
        body = self._members(self.level_id(level), pair, b"", 1.0, transformed=False)
        carrier = self._load(self.api.Ciphertext(), body)
        self.evaluator.transform_to_ntt_inplace(carrier)
        return self.residues(carrier, level)[0]

    def plaintext(self, residues: NDArray[np.uint64], level: int, scale: float) -> Any:
        """Build a SEAL plaintext from residues `(primes, N)` in NTT form."""
        head = _PLAIN.pack(struct.pack("<4Q", *self.level_id(level)), residues.size, scale)
        words = struct.pack("<Q", residues.size) + residues.astype("<u8").tobytes()
        return self._load(self.api.Plaintext(), head + self._frame(words))

    # -- evaluation keys ---------------------------------------------------------------------

    def split_switch_keys(
        self, serializable: Any, elements: Sequence[int], table: int
    ) -> list[tuple[NDArray[np.uint64], bytes]]:
        """Return residues `(primes, N)` and seed, digit by digit, element by element.

        Args:
            serializable: Seeded Galois or relinearisation keys.
            elements: Positions that are filled, in ascending order.
            table: Length of SEAL's table of positions.
        """
        digits, primes = len(self.params.data_bits), len(self.key_primes)
        each = self._saved_size(primes, True) + _HEADER.size
        expected = 40 + 8 * table + len(elements) * digits * each
        body = _saved(serializable, expected)
        parts, at = [], 40
        filled = set(elements)
        for position in range(table):
            at += 8
            for _ in range(digits if position in filled else 0):
                piece = body[at + _HEADER.size : at + each]
                residues, seed = self._split(piece, primes, 1)
                parts.append((residues[0], seed))
                at += each
        return parts

    def join_switch_keys(
        self,
        keys: Any,
        parts: Sequence[tuple[NDArray[np.uint64], bytes]],
        elements: Sequence[int],
        table: int,
    ) -> Any:
        """Build SEAL's key object from what `split_switch_keys` gave."""
        digits = len(self.params.data_bits)
        filled = {position: rank for rank, position in enumerate(elements)}
        chunks = [struct.pack("<4QQ", *self._key_id, table)]
        for position in range(table):
            rank = filled.get(position)
            chunks.append(struct.pack("<Q", 0 if rank is None else digits))
            if rank is None:
                continue
            for residues, seed in parts[rank * digits : (rank + 1) * digits]:
                members = self._members(self._key_id, residues[None], seed, 1.0)
                chunks.append(self._frame(members))
        return self._load(keys, b"".join(chunks))

    def split_public_key(self, key: Any) -> NDArray[np.uint64]:
        """Return the residues of a public key: shape `(2, primes, N)`."""
        primes = len(self.key_primes)
        return self._split(_saved(key, self._saved_size(primes, False)), primes, 2)[0]

    def join_public_key(self, residues: NDArray[np.uint64]) -> Any:
        """Build SEAL's public key from what `split_public_key` gave."""
        return self._load(self.api.PublicKey(), self._members(self._key_id, residues, b"", 1.0))

    # -- secret key ------------------------------------------------------------------------------

    def split_secret_key(self, key: Any) -> NDArray[np.uint64]:
        """Return the residues of a secret key: shape `(primes, N)`."""
        return self._plain_words(key, len(self.key_primes))

    def join_secret_key(self, residues: NDArray[np.uint64]) -> Any:
        """Build SEAL's secret key from what `split_secret_key` gave."""
        head = _PLAIN.pack(struct.pack("<4Q", *self._key_id), residues.size, 1.0)
        words = struct.pack("<Q", residues.size) + residues.astype("<u8").tobytes()
        return self._load(self.api.SecretKey(), head + self._frame(words))

    # -- evaluation -------------------------------------------------------------------------------

    def rotate(self, ciphertext: Any, step: int, keys: Any) -> Any:
        """Return the ciphertext with its slots rotated left by `step`."""
        element = galois_element(step, self.params.poly_modulus_degree)
        if not keys.has_key(element):
            raise MissingKeyError(f"no rotation key for step {step}: send the keys of this layer")
        out = self.api.Ciphertext()
        self.evaluator.apply_galois(ciphertext, element, keys, out)
        return out


def galois_element(step: int, degree: int) -> int:
    """Return 3^step mod 2N: SEAL's `[ints]` overload takes elements, not steps."""
    return pow(3, step, 2 * degree)


@functools.lru_cache(maxsize=8)
def engine(params: HEParams) -> Engine:
    """Return the engine of some parameters; building one takes up to a second."""
    return Engine(params)
