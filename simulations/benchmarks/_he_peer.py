"""What TenSEAL does by itself: the peer of `simulations.benchmarks.he`."""

import time
from collections.abc import Callable

import numpy as np
import tenseal as ts

BITS = (60, 40, 60)
DEGREE = 8192


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median CPU time of `work`, all threads of this process together, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return float(np.median(times))


def alternate(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, each: int = 3
) -> tuple[float, float]:
    """Return the median CPU seconds of both, taken in turns, so that noise meets both alike.

    Args:
        ours: Called `each` times a round.
        theirs: Called once a round.
        rounds: Turns.
        each: Calls of `ours` in a turn: it is the shorter.
    """
    ours()
    mine, other = [], []
    for _ in range(rounds):
        mine += [cpu_seconds(ours, 1) for _ in range(each)]
        other.append(cpu_seconds(theirs, 1))
    return float(np.median(mine)), float(np.median(other))


def context(bits: tuple[int, ...] = BITS, degree: int = DEGREE):
    """Return a TenSEAL context with rotation keys, one thread, scale 2^40."""
    made = ts.context(ts.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=list(bits), n_threads=1)
    made.global_scale = 2.0**40
    made.generate_galois_keys()
    return made


def matmul(owner, weight: np.ndarray, values: np.ndarray) -> Callable[[], object]:
    """Return a call of `CKKSVector.matmul` with `weight` of shape `(out, in)`."""
    vector, matrix = ts.ckks_vector(owner, values.tolist()), weight.T.tolist()
    return lambda: vector.matmul(matrix)


def matmul_error(owner, weight: np.ndarray, values: np.ndarray) -> float:
    """Return the largest error of one `CKKSVector.matmul`."""
    result = ts.ckks_vector(owner, values.tolist()).matmul(weight.T.tolist())
    return float(np.abs(np.array(result.decrypt()) - weight @ values).max())


def mm_seconds_per_output(owner, inputs: int, outputs: int, tokens: int) -> float:
    """Return CPU seconds of `CKKSTensor.mm` for one output of `tokens` packed tokens."""
    rng = np.random.default_rng(0)
    plain = ts.plain_tensor(
        rng.standard_normal((tokens, 1, inputs)).ravel().tolist(), [tokens, 1, inputs]
    )
    tensor = ts.ckks_tensor(owner, plain, batch=True)
    weight = ts.plain_tensor(
        rng.standard_normal((inputs, outputs)).ravel().tolist(), [inputs, outputs]
    )
    return cpu_seconds(lambda: tensor.mm(weight), 1) / outputs


def gallery(owner, embeddings: np.ndarray, query: np.ndarray) -> Callable[[], object]:
    """Return a search by `matmul`, in as many chunks as one ciphertext allows."""
    dimension = embeddings.shape[1]
    chunks = -(-len(embeddings) // (DEGREE // 2 + 1 - dimension))
    vector = ts.ckks_vector(owner, query.tolist())
    parts = [part.T.tolist() for part in np.array_split(embeddings, chunks)]
    return lambda: [vector.matmul(part) for part in parts]


def adapter_seconds(first: np.ndarray, second: np.ndarray, values: np.ndarray) -> float:
    """Return CPU seconds of linear, square, linear by `matmul`, at depth 3 as it needs."""
    owner = context((60, 40, 40, 40, 60), 16384)
    owner.generate_relin_keys()
    vector = ts.ckks_vector(owner, values.tolist())
    one, two = first.T.tolist(), second.T.tolist()

    def work() -> None:
        hidden = vector.matmul(one)
        hidden.square_()
        hidden.matmul_(two)

    return cpu_seconds(work, 1)


def sum_bytes_and_seconds(update: np.ndarray) -> tuple[int, float]:
    """Return bytes of one client's update in the layout [60, 40, 40], and CPU seconds to make it.

    One real value a slot, no seeds: what NVFlare's and other TenSEAL examples send.
    """
    owner = ts.context(ts.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=[60, 40, 40], n_threads=1)
    owner.global_scale = 2.0**40
    sizes: list[int] = []
    seconds = cpu_seconds(
        lambda: sizes.append(len(ts.ckks_vector(owner, update.tolist()).serialize())), 1
    )
    return sizes[0], seconds


def public_context_bytes(owner) -> int:
    """Return the bytes of the public context with rotation keys that a server needs."""
    return len(owner.serialize(save_secret_key=False, save_relin_keys=False))
