"""Encrypted against plaintext on real images: classification, projection and search.

`python -m simulations.encrypted_retrieval` embeds images of the embedded data set, runs the last
step under encryption as a server would, and counts how often the top answer is the same.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedvlm.data import load_emoji, make_splits
from fedvlm.models import load_model
from fedvlm.seeds import ExperimentSeed
from secure.he import (
    Encrypted,
    EncryptedGallery,
    EncryptedLinear,
    EncryptedProjection,
    EvaluationKeys,
    HEClient,
    HEParams,
    top_k,
)

_RELATIVE_ERROR = 3e-4


@dataclass(frozen=True)
class Agreement:
    """How often encrypted and plaintext computation have the same top answer.

    Attributes:
        images: Images that were classified and searched among.
        classes: Captions that they were classified into.
        classification_top1: Share of images with the same first caption.
        projection_top1: The same, with the caption found among projected embeddings.
        retrieval_top1: Share of caption queries with the same first image.
        retrieval_top10: Share with the same first ten images, in order.
        accuracy_encrypted: Share of images whose first caption is their own, encrypted.
        accuracy_plaintext: The same in plaintext.
        projection_max_error: Largest error of a projected feature over the largest norm of one.
        seconds_per_classification: Wall time of encryption, server and decryption.
        seconds_per_search: The same for one search.
    """

    images: int
    classes: int
    classification_top1: float
    projection_top1: float
    retrieval_top1: float
    retrieval_top10: float
    accuracy_encrypted: float
    accuracy_plaintext: float
    projection_max_error: float
    seconds_per_classification: float
    seconds_per_search: float


def _pooled_images(model, inputs, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return pooled features before the projection: what a client computes by itself."""
    with torch.inference_mode():
        parts = [
            model.vlm.backbone.vision_model(**inputs(part)).pooler_output
            for part in np.array_split(rows, -(-len(rows) // 256))
        ]
    return torch.cat(parts).double().numpy()


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _roundtrip(layer, owner: HEClient, keys: EvaluationKeys, values: NDArray) -> NDArray:
    """Encrypt, serialize, compute, serialize, decrypt."""
    sent = Encrypted.from_bytes(owner.encrypt(values, layer.plan).to_bytes(), owner.params)
    return owner.decrypt(Encrypted.from_bytes(layer(sent, keys).to_bytes(), owner.params))


def run(
    images: int = 600, seed: int = 0, progress: Callable[[str], None] = lambda text: None
) -> Agreement:
    """Classify and search among images that no client trained on.

    Args:
        images: How many, from the test split and then the out-of-distribution one.
        seed: Experiment seed: it decides the split and which images are taken.
        progress: Called with one line a stage.
    """
    progress("loading model and images")
    model, data = load_model("embedded"), load_emoji()
    splits = make_splits(data, ExperimentSeed(seed))
    inputs = model.processor.images(data, lambda task, done, total: None)
    pool = np.concatenate([splits.test, splits.ood, splits.withheld])
    rows = ExperimentSeed(seed).numpy("encrypted").permutation(pool)[:images]
    captions = sorted({data.captions[row] for row in rows})
    labels = np.array([captions.index(data.captions[row]) for row in rows])
    texts = model.vlm.embed(model.processor.texts(captions), "text").double().numpy()
    pooled = _pooled_images(model, inputs, rows)
    projection = model.vlm.backbone.visual_projection.weight  # pyright: ignore
    weight = projection.detach().double().numpy()  # pyright: ignore
    exact = pooled @ weight.T
    embedded, plain_first = _unit(exact), (texts @ exact.T).argmax(axis=0)

    # The range is set from public images, never from those that are encrypted.
    calibration = _pooled_images(model, inputs, splits.public[:512])
    largest = 1.5 * float(np.linalg.norm(calibration, axis=1).max())
    params = HEParams.select(0, largest, _RELATIVE_ERROR * largest)

    progress(f"classification of {len(rows)} images: {params.explain()}")
    head = EncryptedLinear(texts @ weight, params=params)
    owner = HEClient(params)
    keys = owner.evaluation_keys(head.plan)
    start = time.perf_counter()
    logits = np.concatenate([_roundtrip(head, owner, keys, row) for row in pooled])
    classification_s = (time.perf_counter() - start) / len(rows)
    first = logits.argmax(axis=1)

    batch_params = HEParams.select(0, largest, _RELATIVE_ERROR * largest, batch=len(rows))
    layer = EncryptedProjection.from_model(model.vlm, "image", batch_params, batch=len(rows))
    progress(f"projection: {batch_params.explain()}")
    batch_owner = HEClient(batch_params)
    batch_keys = batch_owner.evaluation_keys(layer.plan)
    projected = _roundtrip(layer, batch_owner, batch_keys, pooled)
    error = float(np.abs(projected - exact).max() / np.linalg.norm(exact, axis=1).max())
    projection_first = (texts @ projected.T).argmax(axis=0)

    search_params = HEParams.select(0, 1.0, _RELATIVE_ERROR)
    progress(f"search by {len(captions)} captions: {search_params.explain()}")
    gallery = EncryptedGallery(embedded, search_params)
    searcher = HEClient(search_params)
    search_keys = searcher.evaluation_keys(gallery.plan)
    queries = _unit(texts)
    start = time.perf_counter()
    scores = np.concatenate([_roundtrip(gallery, searcher, search_keys, q) for q in queries])
    search_s = (time.perf_counter() - start) / len(queries)
    truth = queries @ embedded.T
    tops = [(top_k(a, 10), top_k(b, 10)) for a, b in zip(scores, truth, strict=True)]
    return Agreement(
        images=len(rows),
        classes=len(captions),
        classification_top1=float(np.mean(first == plain_first)),
        projection_top1=float(np.mean(projection_first == plain_first)),
        retrieval_top1=float(np.mean([a[0] == b[0] for a, b in tops])),
        retrieval_top10=float(np.mean([np.array_equal(a, b) for a, b in tops])),
        accuracy_encrypted=float(np.mean(first == labels)),
        accuracy_plaintext=float(np.mean(plain_first == labels)),
        projection_max_error=error,
        seconds_per_classification=classification_s,
        seconds_per_search=search_s,
    )


def main() -> None:
    """Print the agreement as JSON."""
    result = run(progress=lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(asdict(result), indent=2))


if __name__ == "__main__":
    main()
