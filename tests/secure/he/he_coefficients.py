"""What the owner of a key sees of a ciphertext: an integer polynomial, every bit of it."""

import math

import numpy as np

from secure.he import HEClient
from secure.he._exact import residues_of
from secure.he._seal import Engine


def from_ntt(seal: Engine, residues: np.ndarray, level: int = 0) -> np.ndarray:
    """Return centred integers `(N,)`, as Python's, from residues `(primes, N)` in NTT form."""
    pair = np.stack([residues, np.ones_like(residues)])
    carrier = seal.load_ciphertext(pair, b"", level, 1.0)
    seal.evaluator.transform_from_ntt_inplace(carrier)
    rows = seal.residues(carrier, level)[0]
    primes = seal.primes(level)
    modulus = math.prod(primes)
    total = np.zeros(rows.shape[1], dtype=object)
    for row, prime in zip(rows, primes, strict=True):
        rest = modulus // prime
        total += row.astype(object) * (rest * pow(rest, -1, prime))
    total %= modulus
    return np.where(total > modulus // 2, total - modulus, total)


def polynomial(owner: HEClient, ciphertext, level: int = 0) -> np.ndarray:
    """Return what a ciphertext decrypts to, before any float: integers `(N,)`."""
    seal = owner._seal
    plain = seal.api.Plaintext()
    owner._decryptor.decrypt(ciphertext, plain)
    return from_ntt(seal, seal.plain_residues(plain, level), level)


def slots(integers: np.ndarray) -> np.ndarray:
    """Return the slots `(N / 2,)` of an integer polynomial."""
    degree = len(integers)
    values = np.fft.ifft(
        integers.astype(np.float64) * np.exp(1j * np.pi / degree * np.arange(degree))
    )
    exponents = [1]
    for _ in range(degree // 2 - 1):
        exponents.append(exponents[-1] * 3 % (2 * degree))
    return (values * degree)[np.array(exponents) // 2]


def transformed(seal: Engine, integers: np.ndarray, level: int = 0) -> np.ndarray:
    """Return residues in NTT form `(primes, N)` of integers `(N,)`."""
    return seal.to_ntt(residues_of(integers, seal.primes(level)), level)
