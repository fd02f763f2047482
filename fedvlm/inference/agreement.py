"""How well computing on what isn't seen agrees with the plaintext, and what it costs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from secure.smpc import Plan, Query, infer

BATCH = 16
_RELATIVE_ERROR = 3e-4
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Agreement:
    """What a tower did privately beside its plaintext.

    Attributes:
        name: Which tower.
        inputs: Number of images or captions.
        labels: Number of candidates of the top-1.
        agreement: Share of inputs whose private top-1 is the plaintext's.
        max_error: Largest absolute error of what was revealed as embeddings, of unit length.
        rounds: Rounds of one input.
        online_bytes: Bytes of one input, of the party that sends more.
        dealer_bytes: Bytes that the dealer makes for one input.
        online_seconds: Mean seconds of one input, inside this process.
    """

    name: str
    inputs: int
    labels: int
    agreement: float
    max_error: float
    rounds: int
    online_bytes: int
    dealer_bytes: int
    online_seconds: float


def smpc_agreement(
    plan: Plan,
    pixels: Tensor,
    reference: Tensor,
    table: Tensor,
    name: str,
    progress: Progress = lambda text: None,
    batch: int = BATCH,
) -> Agreement:
    """Classify images by two parties and compare the top-1.

    Args:
        plan: The compiled image tower.
        pixels: Shape (N, …): what the client prepared.
        reference: Shape (N, D), unit rows: the tower's embeddings in the clear.
        table: Shape (L, D), unit rows: embeddings of the captions, 2 to 256.
        name: Which tower.
        progress: Called with a line of text.
        batch: Images at once; seconds are per image of such a batch.
    """
    expected = (reference @ table.T).argmax(-1)
    same, seconds, error = 0, 0.0, 0.0
    for start in range(0, len(pixels), batch):
        part = {"pixel_values": pixels[start : start + batch]}
        size = len(part["pixel_values"])
        result = infer(plan, part, Query("top", labels=len(table), batch=size), table)
        same += int((result.value[:, 0] == expected[start : start + batch]).sum())
        seconds += result.seconds
        if start < 4 * batch:
            shown = infer(plan, part, Query("embedding", batch=size))
            private = F.normalize(shown.value, dim=-1)
            error = max(error, float((private - reference[start : start + batch]).abs().max()))
        progress(f"images {min(start + batch, len(pixels))} of {len(pixels)}: {same} agree")
    cost = plan.cost(query=Query("top", labels=len(table)))
    return Agreement(
        name,
        len(pixels),
        len(table),
        same / len(pixels),
        error,
        cost.rounds,
        max(cost.client_bytes, cost.server_bytes),
        cost.dealer_bytes,
        seconds / len(pixels),
    )


@dataclass(frozen=True)
class EncryptedAgreement:
    """What an encrypted projection onto captions did beside its plaintext.

    Attributes:
        inputs: Number of images.
        labels: Number of captions.
        same: Images whose best caption is the plaintext's.
        client_s: Seconds of one image at the client: encryption and decryption, mean.
        server_s: Seconds of one image at the server, mean.
        up_bytes: Ciphertext that the client sends for one image.
        down_bytes: Ciphertext that it gets back.
        setup_bytes: Evaluation keys, once.
    """

    inputs: int
    labels: int
    same: int
    client_s: float
    server_s: float
    up_bytes: int
    down_bytes: int
    setup_bytes: int


def encrypted_agreement(
    pooled: NDArray[np.float64], weight: NDArray[np.float64], public: NDArray[np.float64]
) -> EncryptedAgreement:
    """Rank captions for features that the server doesn't see, image by image.

    Args:
        pooled: Shape (N, H): features that the client computed in the clear.
        weight: Shape (L, H): the tower's projection, folded with the captions' embeddings.
        public: Shape (M, H): features of public images, which set the range; never those that are
            encrypted.
    """
    from secure.he import Encrypted, EncryptedLinear, HEClient, HEParams

    largest = 1.5 * float(np.linalg.norm(public, axis=1).max())
    params = HEParams.select(0, largest, _RELATIVE_ERROR * largest)
    layer = EncryptedLinear(weight, params=params)
    owner = HEClient(params)
    keys = owner.evaluation_keys(layer.plan)
    expected = (pooled @ weight.T).argmax(axis=1)
    same, client_s, server_s, up, down = 0, 0.0, 0.0, 0, 0
    for row, best in zip(pooled, expected, strict=True):
        start = time.perf_counter()
        sent = owner.encrypt(row, layer.plan).to_bytes()
        between = time.perf_counter()
        answer = layer(Encrypted.from_bytes(sent, params), keys).to_bytes()
        done = time.perf_counter()
        scores = owner.decrypt(Encrypted.from_bytes(answer, params))
        end = time.perf_counter()
        same += int(np.ravel(scores).argmax() == best)
        client_s += between - start + end - done
        server_s += done - between
        up, down = len(sent), len(answer)
    count = len(pooled)
    return EncryptedAgreement(
        *(count, len(weight), same, client_s / count, server_s / count),
        *(up, down, len(keys.to_bytes())),
    )


@torch.no_grad()
def embeddings(model: Any, pixels: Tensor, batch: int = 64) -> Tensor:
    """Return a CLIP's image embeddings in the clear: shape (N, D), unit rows, float64."""
    parts = [
        model.get_image_features(pixels[at : at + batch]).pooler_output
        for at in range(0, len(pixels), batch)
    ]
    return F.normalize(torch.cat(parts), dim=-1).double()
