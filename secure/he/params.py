"""Encryption parameters: chosen for depth, range and error; never below 128 bits."""

import hashlib
import math
import struct
from dataclasses import dataclass, field

from secure.errors import ParameterError
from secure.he._arguments import real, shown, whole
from secure.he._bounds import (
    FLOAT,
    Switching,
    fresh_std,
    headroom,
    rescale_std,
    rounding,
    slot_bound,
    switching,
)
from secure.he.errors import InsecureParametersError, WireError

# Largest log2 of the whole modulus, special prime counted, for 128-bit classical security with
# a uniform ternary secret and error of standard deviation 3.19: Bossuat et al., "Security
# Guidelines for Implementing Homomorphic Encryption", ePrint 2024/463, table for 128 bits. It
# is tighter than the table of 2018 that SEAL itself enforces (27, 54, 109, 218, 438, 881).
MAX_MODULUS_BITS = {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430, 32768: 868}

# Weights are encoded with at most this many bits: a float64 has no more to give.
MAX_WEIGHT_BITS = 46
# From here on, one ciphertext a feature beats one a token: see `secure.he.planner`.
BATCH_THRESHOLD = 256
_WIRE = struct.Struct("<IBBd")
_MAX_PRIMES = 16
_PRIME_BITS = range(20, 61)


@dataclass(frozen=True)
class HEParams:
    """CKKS parameters, with the range of the values that they are meant for.

    Args:
        poly_modulus_degree: Ring dimension N: a power of two from 1024 to 32768. A ciphertext
            has N/2 complex slots.
        coeff_bits: Bits of the primes of the modulus, data primes first. With two or more, the
            last is the special prime, which only key switching uses.
        scale_bits: log2 of the scale at which inputs are encrypted.
        max_abs: Largest Euclidean norm of an encrypted vector, and so of each of its entries.
            Encryption refuses more.

    Guarantees:
        An object of this class has at least 128 bits of classical security against recovery of
        the plaintext by whoever holds ciphertexts and evaluation keys but no secret key
        (ePrint 2024/463, uniform ternary secret). Nothing is claimed against someone who is
        told decrypted values: see `secure.he.ReleasePolicy`.

    Raises:
        InsecureParametersError: The modulus is too long for N.
        ParameterError: A value is out of its range.

    Example:
        >>> params = HEParams.select(depth=0, max_abs=1.0, abs_error=3e-4, batch=1)
        >>> params.poly_modulus_degree, params.coeff_bits
        (4096, (50, 56))
    """

    poly_modulus_degree: int
    coeff_bits: tuple[int, ...]
    scale_bits: int
    max_abs: float = 1.0
    reason: str = field(default="given by the caller", compare=False)

    def __post_init__(self) -> None:
        whole(self.poly_modulus_degree, "poly_modulus_degree")
        whole(self.scale_bits, "scale_bits")
        real(self.max_abs, "max_abs")
        if not isinstance(self.coeff_bits, tuple):
            raise ParameterError(f"coeff_bits is a tuple of bits, got {shown(self.coeff_bits)}")
        for bits in self.coeff_bits:
            whole(bits, "bits of a prime")
        limit = MAX_MODULUS_BITS.get(self.poly_modulus_degree)
        if limit is None:
            raise ParameterError(
                f"poly_modulus_degree must be one of {list(MAX_MODULUS_BITS)}, "
                f"got {self.poly_modulus_degree}"
            )
        if not 1 <= len(self.coeff_bits) <= _MAX_PRIMES:
            raise ParameterError(f"coeff_bits needs 1 to {_MAX_PRIMES} primes")
        if any(bits not in _PRIME_BITS for bits in self.coeff_bits):
            raise ParameterError(f"each prime has 20 to 60 bits, got {list(self.coeff_bits)}")
        if sum(self.coeff_bits) > limit:
            raise InsecureParametersError(
                f"{sum(self.coeff_bits)} modulus bits at N={self.poly_modulus_degree} are under "
                f"128 bits of security; at most {limit}, special prime counted"
            )
        if not (math.isfinite(self.max_abs) and 2.0**-30 <= self.max_abs <= 2.0**30):
            raise ParameterError(f"max_abs must be in [2^-30, 2^30], got {self.max_abs}")
        room = sum(self.data_bits) - 2 - max(math.log2(self.max_abs), 0.0)
        if not 8 <= self.scale_bits <= room:
            raise ParameterError(
                f"scale_bits must be in [8, {math.floor(room)}] for these primes and max_abs, "
                f"got {self.scale_bits}"
            )

    @property
    def slots(self) -> int:
        """Complex slots of one ciphertext: N/2."""
        return self.poly_modulus_degree // 2

    @property
    def data_bits(self) -> tuple[int, ...]:
        """Bits of the primes that a fresh ciphertext has: without the special prime."""
        return self.coeff_bits[:-1] if len(self.coeff_bits) > 1 else self.coeff_bits

    @property
    def depth(self) -> int:
        """Rescalings that a fresh ciphertext has room for."""
        return len(self.data_bits) - 1

    @property
    def rotates(self) -> bool:
        """Whether key switching, and so rotation, is possible: there is a special prime."""
        return len(self.coeff_bits) > 1

    @property
    def identity(self) -> bytes:
        """16 bytes that name these parameters on the wire."""
        return hashlib.sha256(b"fedvlm he parameters 1" + self.to_bytes()).digest()[:16]

    def explain(self) -> str:
        """Say in one line what was chosen, why, and at which security level."""
        limit = MAX_MODULUS_BITS[self.poly_modulus_degree]
        return (
            f"N={self.poly_modulus_degree}, primes {list(self.coeff_bits)}, "
            f"scale 2^{self.scale_bits}: {self.reason}; {sum(self.coeff_bits)} of at most "
            f"{limit} modulus bits for 128-bit security (ePrint 2024/463)"
        )

    def to_bytes(self) -> bytes:
        """Serialize: N, scale, range, primes."""
        head = _WIRE.pack(
            self.poly_modulus_degree, self.scale_bits, len(self.coeff_bits), self.max_abs
        )
        return head + bytes(self.coeff_bits)

    @classmethod
    def from_bytes(cls, data: bytes) -> "HEParams":
        """Read what `to_bytes` wrote, and check it like a caller's own values.

        Raises:
            WireError: The bytes are not parameters, or not admissible ones.
            InsecureParametersError: They are under 128 bits.
        """
        if len(data) < _WIRE.size:
            raise WireError(f"parameters have at least {_WIRE.size} bytes, got {len(data)}")
        degree, scale_bits, primes, max_abs = _WIRE.unpack_from(data)
        if len(data) != _WIRE.size + primes:
            raise WireError(f"parameters end after {len(data)} bytes, {primes} primes announced")
        try:
            return cls(
                degree, tuple(data[_WIRE.size :]), scale_bits, max_abs, "as the other side says"
            )
        except ParameterError as error:
            raise WireError(f"inadmissible parameters: {error}") from error

    def switching(self, level: int = 0) -> Switching:
        """Return the noise of one key switch at a level, in units of the ciphertext's integers."""
        if not self.rotates:
            return Switching(0.0, 0.0)
        left = self.data_bits[: len(self.data_bits) - level]
        return switching(self.poly_modulus_degree, left, self.coeff_bits[-1])

    def fresh_and_switched(self) -> float:
        """Return the complex deviation of a slot of a fresh ciphertext after one rotation.

        In units of the ciphertext's integers.
        """
        return math.hypot(fresh_std(self.poly_modulus_degree), self.switching().std)

    def noise(self) -> float:
        """Bound the real part of the noise of a slot of a fresh ciphertext after one rotation.

        Returns:
            Absolute error at the scale of inputs: exceeded with probability 3e-14, and in the
            slots where key switching gathers its bias with 1e-9 a key; see `secure.he._bounds`.
        """
        bias = self.switching().bias
        return slot_bound(self.fresh_and_switched(), bias) * 2.0**-self.scale_bits

    def after_noise(self, level: int, scale: float, sums: int) -> float:
        """Bound what key switching and rescaling at a result's own scale add to an entry of it.

        Args:
            level: Level of the result.
            scale: Its scale.
            sums: Key switches times slots that add up to one entry.
        """
        switch = self.switching(level)
        std = math.hypot(switch.std, rescale_std(self.poly_modulus_degree))
        # Each step's bias goes on to another entry; one entry meets one, and its neighbours.
        return slot_bound(math.sqrt(sums) * std, 2 * switch.bias) / scale

    def predicted_error(self, depth: int = 0) -> float:
        """Bound the error of one linear layer whose rows have at most unit norm.

        Whatever the weights and the layout: the noise of encryption and rotation (two outputs
        share a complex slot, so each meets the noise of both), the rounding of encoded weights, the
        noise of the last steps, and float64. For rows of norm up to g > 1 it is at most g times as
        much; the `error` of a layer is the bound of that layer as it is.

        Args:
            depth: 0 for one layer; 1 for a LoRA kept apart and 2 for linear, square, linear, where
                no matrix has a singular value above 1.

        Returns:
            Absolute error for an input of norm `max_abs`, chosen without knowledge of the
            server's rounding. Exceeded with probability 3e-14 an entry, 1e-9 a key.
        """
        if depth:
            # These two need the parameters themselves.
            from secure.he import _chain_bounds

            at = self.scale_bits if depth == 1 else 2 * self.scale_bits - self.data_bits[-2]
            size = 2 * math.sqrt(2) * self.max_abs if depth == 1 else 2 * self.max_abs**2
            bits = self._weight_bits(self.data_bits[: len(self.data_bits) - depth], at, size)
            unit = _chain_bounds.unit_lora_error if depth == 1 else _chain_bounds.unit_adapter_error
            return unit(self, bits) + 8 * FLOAT * size
        noise = math.sqrt(2) * self.noise()
        bits = self._weight_bits(self.data_bits, self.scale_bits, noise + 1.5 * self.max_abs)
        level, result_bits = 0, self.scale_bits + bits
        while level < self.depth and result_bits - self.data_bits[-1 - level] >= self.scale_bits:
            result_bits -= self.data_bits[-1 - level]
            level += 1
        after = self.after_noise(level, 2.0**result_bits, self.slots)
        weights = rounding(self.poly_modulus_degree) * self.max_abs * 2.0**-bits
        return noise + weights + after + 2 * FLOAT * self.max_abs

    def _weight_bits(self, data_bits: tuple[int, ...], scale_bits: float, largest: float) -> float:
        # SEAL's primes are a little under their bits.
        modulus = sum(data_bits) - 0.01 * len(data_bits)
        return min(modulus - headroom(largest) - scale_bits, MAX_WEIGHT_BITS)

    @classmethod
    def select(cls, depth: int, max_abs: float, abs_error: float, batch: int = 1) -> "HEParams":
        """Choose the cheapest parameters that reach an error.

        Args:
            depth: Rescalings, at most 2: 0 for one linear layer, a gallery or a sum; 1 for two
                products in a row (LoRA kept apart); 2 for linear, square, linear.
            max_abs: Largest Euclidean norm of an input vector.
            abs_error: Error wanted on each result, for weight rows of unit norm.
            batch: Vectors encrypted at a time; from 256 on, one ciphertext a feature is
                cheaper, and no rotation keys are needed.

        Returns:
            The first candidate, cheapest first, whose `predicted_error` is small enough.

        Raises:
            ParameterError: No candidate reaches the error at that depth.

        Example:
            >>> HEParams.select(depth=0, max_abs=1.0, abs_error=1e-4, batch=2048).coeff_bits
            (53,)
        """
        if not 0 <= whole(depth, "depth") <= 2 or whole(batch, "batch") < 1:
            raise ParameterError(f"depth 0 to 2 and batch >= 1 are needed, got {depth}, {batch}")
        if not (real(abs_error, "abs_error") > 0 and real(max_abs, "max_abs") > 0):
            raise ParameterError(
                f"abs_error and max_abs must be positive, got {abs_error}, {max_abs}"
            )
        best = math.inf
        for degree, bits, scale in _candidates(depth, batch):
            # Larger inputs at a smaller scale: the error grows with them, the range does not.
            scale -= round(math.log2(max_abs))
            try:
                params = cls(degree, bits, scale, max_abs)
            except ParameterError:
                continue
            error = params.predicted_error(depth)
            best = min(best, error)
            if error <= abs_error:
                why = (
                    f"depth {depth}, batch {batch}, norm up to {max_abs:g}, "
                    f"predicted error {error:.1e} of {abs_error:.1e} asked"
                )
                return cls(degree, bits, scale, max_abs, why)
        raise ParameterError(
            f"no parameters reach an error of {abs_error:.1e} at depth {depth} and norm "
            f"{max_abs:g}: the best is {best:.1e}"
        )


def _candidates(depth: int, batch: int) -> list[tuple[int, tuple[int, ...], int]]:
    """Return (N, primes, scale bits), cheapest first."""
    found: list[tuple[int, tuple[int, ...], int]] = []
    if depth == 0 and batch >= BATCH_THRESHOLD:
        found += [(2048, (53,), 29)]
    if depth == 0:
        found += [(4096, (50, 56), 28)]
        found += [(8192, (60, 40, 60), 50)]
        found += [(8192, (60, 60, 60), 70)]
    # Half of the last prime's bits go to the scale, the others to the last layer's weights.
    scale = 36 if depth == 1 else 38
    middle = (40,) * depth
    found += [(degree, (60, *middle, 60), scale) for degree in (8192, 16384, 32768) if depth]
    return found
