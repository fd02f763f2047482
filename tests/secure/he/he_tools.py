"""What the tests of `secure.he` share: parameters, clients kept for the run, a round trip."""

import functools

import numpy as np

from secure.he import Encrypted, EvaluationKeys, HEClient, HEParams

FAST = HEParams(4096, (51, 55), 28)
PRECISE = HEParams(8192, (60, 40, 60), 50)
RESIDUE = HEParams(2048, (53,), 29)


@functools.cache
def client(params: HEParams) -> HEClient:
    """Return a client, one for each set of parameters: keys take a while to make."""
    return HEClient(params)


def unit_rows(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Return rows of norm 1."""
    rows = rng.standard_normal((count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def through_the_wire(layer, values: np.ndarray, owner: HEClient) -> np.ndarray:
    """Encrypt, send, compute, send back, decrypt; everything is serialized on its way."""
    params = owner.params
    keys = EvaluationKeys.from_bytes(owner.evaluation_keys(layer.plan).to_bytes())
    sent = Encrypted.from_bytes(owner.encrypt(values, layer.plan).to_bytes(), params)
    answer = Encrypted.from_bytes(layer(sent, keys).to_bytes(), params)
    return owner.decrypt(answer)
