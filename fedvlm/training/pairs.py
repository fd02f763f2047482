"""A data set as a model sees it: image inputs by row, captions tokenised once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.data.dataset import ImageTextData
from fedvlm.models.processor import ImageInputs, LoadedModel, told_apart


@dataclass(frozen=True)
class EncodedPairs:
    """Image and caption inputs of a data set.

    Attributes:
        images: Image inputs, looked up by row.
        text: Caption inputs, one row per *distinct* caption: each of shape (C, L).
        caption_of: Shape (N,), int64: the row of `text` that belongs to a pair.
        concepts: Shape (N,), int64.
        domains: Shape (N,), int64.
        topics: Shape (N,), int64.
        domain_names: Names of the domains.
        topic_names: Names of the topics.
        groups: Shape (N,), int64; pairs whose images show the same share a number.
    """

    images: ImageInputs
    text: dict[str, Tensor]
    caption_of: NDArray[np.int64]
    concepts: NDArray[np.int64]
    domains: NDArray[np.int64]
    topics: NDArray[np.int64]
    domain_names: tuple[str, ...]
    topic_names: tuple[str, ...]
    groups: NDArray[np.int64]

    def captions(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the caption inputs of rows of `text`, without the padding that all share."""
        picked = {key: value[torch.from_numpy(rows)] for key, value in self.text.items()}
        if "attention_mask" in picked:
            longest = int(picked["attention_mask"].sum(dim=1).max())
            picked = {key: value[:, :longest] for key, value in picked.items()}
        return picked


def encode_pairs(
    data: ImageTextData,
    model: LoadedModel,
    progress: Callable[[str, int, int], None],
    rows: NDArray[np.int64] | None = None,
) -> EncodedPairs:
    """Prepare a data set for a model; stem features are computed once and cached.

    Args:
        data: Image–caption pairs.
        model: The model whose inputs are wanted.
        progress: Called with (task, done, total).
        rows: Shape (n,), the pairs whose images will be used; all of them where None.

    Returns:
        The inputs of the pairs.

    Raises:
        ConfigError: The model's tokenizer can't take the captions, or tell them apart.
    """
    distinct, caption_of = data.distinct_captions
    text = model.processor.texts(distinct)
    told_apart(distinct, text)
    return EncodedPairs(
        images=model.processor.images(
            data, np.arange(len(data)) if rows is None else rows, progress
        ),
        text=text,
        caption_of=caption_of,
        concepts=data.concepts,
        domains=data.domains,
        topics=data.topics,
        domain_names=data.domain_names,
        topic_names=data.topic_names,
        groups=data.groups,
    )
