"""Shamir's secret sharing over the field of 2^255 − 19, on uniform 32-byte seeds.

Source: A. Shamir, "How to share a secret", CACM 22(11), 1979. The secrets are seeds from which
keys are derived, so that one share is 32 bytes whatever the key is for, and one set of Lagrange
coefficients serves every secret that the same clients hold.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from secure.errors import IntegrityError, ParameterError
from secure.random import SecureRandom

PRIME = 2**255 - 19
SECRET_BYTES = 32
_LOW_255_BITS = (1 << 255) - 1


def _field_elements(count: int, rng: SecureRandom) -> list[int]:
    """Draw `count` uniform field elements; a draw is thrown away with probability 2^-250."""
    elements: list[int] = []
    while len(elements) < count:
        missing = count - len(elements)
        drawn = rng.token(SECRET_BYTES * missing)
        for start in range(0, len(drawn), SECRET_BYTES):
            value = int.from_bytes(drawn[start : start + SECRET_BYTES], "little") & _LOW_255_BITS
            if value < PRIME:
                elements.append(value)
    return elements


def _element(data: bytes, what: str) -> int:
    value = int.from_bytes(data, "little")
    if len(data) != SECRET_BYTES or value >= PRIME:
        raise IntegrityError(
            f"{what} is not a field element: expected {SECRET_BYTES} bytes below 2^255 - 19"
        )
    return value


def random_secret(rng: SecureRandom) -> bytes:
    """Draw a seed that can be shared: 32 bytes, uniform below 2^255 − 19."""
    return _field_elements(1, rng)[0].to_bytes(SECRET_BYTES, "little")


def split(
    secret: bytes, threshold: int, points: Sequence[int], rng: SecureRandom
) -> dict[int, bytes]:
    """Share a secret so that any `threshold` shares give it back and fewer say nothing.

    Args:
        secret: 32 bytes below 2^255 − 19, as drawn by `random_secret`.
        threshold: Number of shares that suffice, from 1 to `len(points)`.
        points: Evaluation points, distinct and positive, one a holder.
        rng: Source of the polynomial's coefficients.

    Returns:
        Share of 32 bytes by point.

    Guarantees:
        Any `threshold - 1` shares are distributed independently of the secret, against anyone.

    Raises:
        ParameterError: The threshold or a point is out of range, or a point is repeated.
        IntegrityError: The secret is not a field element.

    Example:
        >>> rng = SecureRandom()
        >>> secret = random_secret(rng)
        >>> shares = split(secret, 2, [1, 2, 3], rng)
        >>> combine({1: shares[1], 3: shares[3]}, 2) == secret
        True
    """
    if not 1 <= threshold <= len(points):
        raise ParameterError(f"threshold must be in [1, {len(points)}], got {threshold}")
    if len(set(points)) != len(points) or any(not 0 < point < PRIME for point in points):
        raise ParameterError("points must be distinct and positive")
    constant = _element(secret, "the secret")
    highest_first = _field_elements(threshold - 1, rng)
    shares = {}
    for point in points:
        value = 0
        for coefficient in highest_first:
            value = (value + coefficient) * point % PRIME
        shares[point] = ((value + constant) % PRIME).to_bytes(SECRET_BYTES, "little")
    return shares


@lru_cache(maxsize=4096)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange weights at zero: w_i = prod_{j≠i} x_j / (x_j − x_i), with one inversion for all."""
    product = 1
    for point in points:
        product = product * point % PRIME
    denominators = []
    for mine in points:
        denominator = mine
        for other in points:
            if other != mine:
                denominator = denominator * (other - mine) % PRIME
        denominators.append(denominator)
    prefixes = [1]
    for denominator in denominators:
        prefixes.append(prefixes[-1] * denominator % PRIME)
    inverse = pow(prefixes[-1], -1, PRIME)
    weights = [0] * len(points)
    for index in reversed(range(len(points))):
        weights[index] = product * inverse * prefixes[index] % PRIME
        inverse = inverse * denominators[index] % PRIME
    return tuple(weights)


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Give the secret back from at least `threshold` shares.

    Args:
        shares: Share by point; beyond the first `threshold` points they are not used.
        threshold: The threshold that the secret was split with.

    Returns:
        The secret, 32 bytes. A wrong share gives a wrong secret, not an error: compare with a
        commitment or a public key.

    Raises:
        ParameterError: There are fewer shares than the threshold.
        IntegrityError: A share is not a field element.
    """
    if len(shares) < threshold or threshold < 1:
        raise ParameterError(f"{threshold} shares are needed, got {len(shares)}")
    points = tuple(sorted(shares)[:threshold])
    total = 0
    for point, weight in zip(points, _weights_at_zero(points), strict=True):
        total += weight * _element(shares[point], f"the share at point {point}")
    return (total % PRIME).to_bytes(SECRET_BYTES, "little")
