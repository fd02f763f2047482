"""Encrypted layers, search and sums beside TenSEAL's own `matmul`, `mm` and serialization.

Seconds are CPU seconds of this process, all threads together, so that neither side gains by
threads or loses by neighbours. Weights are encoded once, before the clock starts: that is what
a server does; TenSEAL's `matmul` has no way to, and encodes at each call.
"""

from collections.abc import Callable

import numpy as np

from secure.he import (
    EncryptedAdapter,
    EncryptedGallery,
    EncryptedLinear,
    HEAggregator,
    HEClient,
    HEParams,
    top_k,
)
from secure.he._residues import ResidueLayer
from secure.he.plans import ResiduePlan, RotationPlan, SumPlan
from simulations.benchmarks import _he_peer as peer
from simulations.benchmarks._harness import Row, lower_is_better
from simulations.benchmarks._he_peer import cpu_seconds

SAME = HEParams(8192, (60, 40, 60), 50)
FAST = HEParams.select(depth=0, max_abs=1.0, abs_error=3e-4)
MATMUL = "TenSEAL CKKSVector.matmul, N=8192 [60,40,60]"
PARAMETERS = 1_000_000
TOKENS = 2048
_MM_OUTPUTS = 8


def unit_rows(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Return `count` random rows of norm 1."""
    rows = rng.standard_normal((count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def weights(rng: np.random.Generator, outputs: int, inputs: int) -> np.ndarray:
    """Return a random layer that keeps norms."""
    return rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)


def layer_call(params: HEParams, weight: np.ndarray) -> Callable[[], object]:
    """Return a call that takes one encrypted vector through one layer."""
    layer = EncryptedLinear(weight, params=params)
    client = HEClient(params)
    keys = client.evaluation_keys(layer.plan)
    vector = unit_rows(np.random.default_rng(0), 1, weight.shape[1])
    sent = client.encrypt(vector, layer.plan)
    return lambda: layer(sent, keys)


def worst_error(params: HEParams, weight: np.ndarray, vectors: int = 100) -> float:
    """Return the largest error over random unit vectors."""
    layer = EncryptedLinear(weight, params=params)
    client = HEClient(params)
    keys = client.evaluation_keys(layer.plan)
    worst = 0.0
    for row in unit_rows(np.random.default_rng(1), vectors, weight.shape[1]):
        got = client.decrypt(layer(client.encrypt(row, layer.plan), keys))[0]
        worst = max(worst, float(np.abs(got - weight @ row).max()))
    return worst


def linear_rows(progress: Callable[[str], None]) -> list[Row]:
    """Measure single vectors: time, error, keys."""
    rng = np.random.default_rng(2)
    owner = peer.context()
    rows = []
    for inputs, outputs in ((512, 512), (768, 512), (1024, 768)):
        progress(f"linear {inputs} to {outputs}")
        weight, vector = weights(rng, outputs, inputs), unit_rows(rng, 1, inputs)[0]
        matmul = peer.matmul(owner, weight, vector)
        name = f"linear_{inputs}_{outputs}"
        ours, theirs = peer.alternate(layer_call(SAME, weight), matmul, 2)
        note = "same N and primes as the peer; input scale 2^50 against 2^40"
        rows.append(lower_is_better(f"{name}_seconds", ours, "s", MATMUL, theirs, note))
        fast, theirs = peer.alternate(layer_call(FAST, weight), matmul, 2)
        note = "N=4096 [50,56], 106 of 106 bits of ePrint 2024/463"
        rows.append(lower_is_better(f"{name}_fast_seconds", fast, "s", MATMUL, theirs, note))
        if (inputs, outputs) == (512, 512):
            progress("errors over 100 vectors")
            error = peer.matmul_error(owner, weight, vector)
            note = "worst of 100 unit vectors; the peer's is of one"
            for label, params in (("", SAME), ("_fast", FAST)):
                mine = worst_error(params, weight)
                metric = f"{name}{label}_max_error"
                rows.append(lower_is_better(metric, mine, "1", MATMUL, error, note))
            plan = RotationPlan(FAST, inputs, outputs)
            size = len(HEClient(FAST).evaluation_keys(plan).to_bytes())
            theirs_size = peer.public_context_bytes(owner)
            note = "rotation keys for 512 to 512 at the fast parameters, seeded"
            row = lower_is_better(
                "evaluation_key_bytes", size, "B", "TenSEAL public context", theirs_size, note
            )
            rows.append(row)
    return rows


def batch_rows(progress: Callable[[str], None]) -> list[Row]:
    """Measure 2048 tokens through 512 to 512 by the residue product."""
    progress(f"batch of {TOKENS} tokens")
    rng = np.random.default_rng(3)
    params = HEParams.select(depth=0, max_abs=1.0, abs_error=1e-4, batch=TOKENS)
    weight, values = weights(rng, 512, 512), unit_rows(rng, TOKENS, 512)
    plan = ResiduePlan(params, 512, 512, TOKENS)
    layer = EncryptedLinear(weight, params=params, plan=plan)
    product = ResidueLayer(plan, weight, None)
    client = HEClient(params)
    sent = client.encrypt(values, plan)
    residues = product.residues(sent.pieces)
    product.multiply(residues)
    core = cpu_seconds(lambda: product.multiply(residues), 5) / TOKENS
    whole = cpu_seconds(lambda: client.decrypt(layer(client.encrypt(values, plan))), 3) / TOKENS
    result = layer(sent)
    error = float(np.abs(client.decrypt(result) - values @ weight.T).max())
    progress("TenSEAL matmul and mm")
    owner = peer.context()
    naive = cpu_seconds(peer.matmul(owner, weight, values[0]), 1)
    slots = peer.DEGREE // 2
    mm = peer.mm_seconds_per_output(owner, 512, _MM_OUTPUTS, slots) * 512 / slots
    note = "server's product on residues, ciphertexts in memory on both sides; no key needed"
    scaled = f"{note}; peer extrapolated from 512 to {_MM_OUTPUTS}, {slots} tokens, its full slots"
    whole_note = "encrypt, expand seeds, product, decrypt; peer: its product alone"
    mm_name = "TenSEAL CKKSTensor.mm, N=8192 [60,40,60]"
    up, down = len(sent.to_bytes()) / TOKENS, len(result.to_bytes()) / TOKENS
    return [
        lower_is_better("batch_2048_seconds_per_token", core, "s", MATMUL, naive, note),
        lower_is_better("batch_2048_seconds_per_token_vs_mm", core, "s", mm_name, mm, scaled),
        lower_is_better("batch_2048_whole_seconds_per_token", whole, "s", mm_name, mm, whole_note),
        Row("batch_2048_max_error", error, "1", note="worst of 2048 x 512 results"),
        Row("batch_2048_upload_bytes_per_token", up, "B"),
        Row("batch_2048_download_bytes_per_token", down, "B"),
    ]


def gallery_rows(progress: Callable[[str], None]) -> list[Row]:
    """Measure a search among 10,000 items of dimension 512."""
    progress("gallery of 10,000")
    rng = np.random.default_rng(4)
    embeddings = unit_rows(rng, 10_000, 512)
    queries = unit_rows(rng, 20, 512) * 0.7 + embeddings[:20]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    gallery = EncryptedGallery(embeddings, FAST)
    client = HEClient(FAST)
    keys = client.evaluation_keys(gallery.plan)
    sent = client.encrypt(queries[0], gallery.plan)
    progress("TenSEAL's gallery")
    matmul = peer.gallery(peer.context(), embeddings, queries[0])
    ours, theirs = peer.alternate(lambda: gallery.query(sent, keys), matmul, 2)
    agree = 0
    for query in queries:
        answer = gallery.query(client.encrypt(query, gallery.plan), keys)
        found = top_k(client.decrypt(answer)[0], 10)
        agree += bool(np.array_equal(found, top_k(embeddings @ query, 10)))
    note = "N=4096 [50,56]; peer in chunks of what one ciphertext holds"
    down = len(gallery.query(sent, keys).to_bytes())
    return [
        lower_is_better("gallery_10k_seconds", ours, "s", MATMUL, theirs, note),
        Row("gallery_10k_top10_equal", agree / len(queries), "1", note="20 queries, same order"),
        Row("gallery_10k_upload_bytes", len(sent.to_bytes()), "B"),
        Row("gallery_10k_download_bytes", down, "B"),
        Row("gallery_10k_key_bytes", len(keys.to_bytes()), "B", note="sent once"),
    ]


def adapter_rows(progress: Callable[[str], None]) -> list[Row]:
    """Measure linear, square, linear."""
    progress("two-layer adapter")
    rng = np.random.default_rng(5)
    params = HEParams.select(depth=2, max_abs=1.0, abs_error=1e-3)
    first, second = weights(rng, 512, 512), weights(rng, 512, 512)
    vector = unit_rows(rng, 1, 512)[0]
    adapter = EncryptedAdapter((first, None), (second, None), params=params)
    client = HEClient(params)
    keys = client.evaluation_keys(adapter.plan)
    sent = client.encrypt(vector, adapter.plan)
    result = client.decrypt(adapter(sent, keys))[0]
    error = float(np.abs(result - second @ (first @ vector) ** 2).max())
    ours = cpu_seconds(lambda: adapter(sent, keys), 3)
    theirs = peer.adapter_seconds(first, second, vector)
    name = "TenSEAL matmul, square, matmul, N=16384 [60,40,40,40,60]"
    note = "N=8192 [60,40,40,60]: the last product needs no rescaling here"
    return [
        lower_is_better("adapter_512_512_512_seconds", ours, "s", name, theirs, note),
        Row("adapter_512_512_512_max_error", error, "1"),
    ]


def aggregation_rows(progress: Callable[[str], None]) -> list[Row]:
    """Measure one client's upload of a million parameters."""
    progress("aggregation of 1M parameters")
    update = np.random.default_rng(6).standard_normal(PARAMETERS).astype(np.float32) * 0.01
    aggregator = HEAggregator(clients=8, clip_norm=11.0, error=1e-6)
    total = aggregator.sum([update, update])
    error = float(np.abs(total - 2 * update.astype(np.float64)).max())
    client = HEClient(aggregator.params)
    plan = SumPlan(aggregator.params, PARAMETERS)
    seconds = cpu_seconds(lambda: client.encrypt(update, plan).to_bytes(), 3)
    size, theirs = peer.sum_bytes_and_seconds(update)
    layout = "TenSEAL ckks_vector, N=8192 [60,40,40]"
    upload = aggregator.upload_bytes
    plain = 4 * PARAMETERS
    return [
        lower_is_better("aggregation_upload_bytes", upload, "B", layout, size),
        lower_is_better(
            "aggregation_upload_over_float32", upload / plain, "1", layout, size / plain
        ),
        Row("aggregation_download_bytes", aggregator.download_bytes, "B"),
        lower_is_better("aggregation_client_seconds", seconds, "s", layout, theirs),
        Row("aggregation_max_error", error, "1", note="8 clients of norm 11 fit the range"),
    ]


def run(progress: Callable[[str], None]) -> list[Row]:
    """Measure everything; about three minutes."""
    rows = []
    for part in (linear_rows, batch_rows, gallery_rows, adapter_rows, aggregation_rows):
        rows += part(progress)
    return rows
