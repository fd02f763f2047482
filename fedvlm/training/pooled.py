"""The features of a frozen image tower, computed once for each image and kept.

A gate behind the tower, a prompt before the captions, or LoRA in the text tower alone leave what
the image tower says of an image as it was. One pass then serves every epoch, round and client.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.adapters.targets import probe_inputs
from fedvlm.data.dataset import ImageTextData
from fedvlm.data.store import ArrayStore
from fedvlm.models.pixels import PixelInputs, processor_hash
from fedvlm.models.processor import LoadedModel
from fedvlm.models.vlm import POOLED, VLM
from fedvlm.training.pairs import EncodedPairs

_BATCH = 32

Progress = Callable[[str, int, int], None]


def image_tower_frozen(vlm: VLM) -> bool:
    """Say whether nothing that trains has a part in what the image tower gives.

    One forward pass over random pixels tells, whatever the adapter and the model.
    """
    images, _ = probe_inputs(vlm)
    with torch.enable_grad():
        return not vlm.pooled_image(images).requires_grad


class PooledInputs:
    """Image inputs that are a frozen tower's features, looked up by row."""

    def __init__(self, store: ArrayStore, contents: Sequence[bytes]) -> None:
        self._store, self._contents = store, contents

    def __call__(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the features of rows of shape (B,), for `VLM.encode_image`."""
        held = self._store.read([self._contents[int(index)] for index in indices])
        return {POOLED: torch.from_numpy(held)}


def with_pooled(
    pairs: EncodedPairs,
    data: ImageTextData,
    model: LoadedModel,
    rows: NDArray[np.int64],
    progress: Progress,
) -> EncodedPairs:
    """Return pairs whose image inputs are features, where the image tower is frozen.

    Args:
        pairs: The data set's inputs.
        data: The same, as it was read.
        model: With its adapter, placed on its device.
        rows: Shape (n,), the pairs whose images will be used.
        progress: Called with (task, done, total).

    Returns:
        `pairs` as they are where the tower trains, where an adapter reads the pixels themselves,
        where a processor doesn't say what it does, or where the cache's bound leaves no room.
    """
    images, vlm = pairs.images, model.vlm
    key = processor_hash(getattr(model.processor, "image_processor", None))
    fits = isinstance(images, PixelInputs) and data.contents is not None and key is not None
    if not isinstance(images, PixelInputs) or not fits or vlm.head is not None:
        return pairs
    if not image_tower_frozen(vlm):
        return pairs
    contents: Sequence[bytes] = data.contents or []
    told = f"pooled {model.hashes.weights} {key} {vlm.dtype} {vlm.device.type} {torch.__version__}"
    store = ArrayStore(told, (vlm.embedding_dim,), np.float32)
    chosen = [contents[row] for row in rows]

    def compute(places: Sequence[int]) -> Iterator[NDArray]:
        numbers, done = rows[np.asarray(places, dtype=np.int64)], 0
        was_training = vlm.training
        vlm.eval()
        try:
            for inputs in images.stream(numbers, _BATCH):
                with torch.inference_mode():
                    found = vlm.pooled_image(inputs).cpu().numpy()
                yield from found
                done += len(found)
                progress("features", done, len(numbers))
        finally:
            vlm.train(was_training)

    if not store.fill(chosen, compute):
        return pairs
    return replace(pairs, images=PooledInputs(store, contents))
