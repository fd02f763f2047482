"""Image–caption pairs with the labels that make a federation of them."""

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedvlm.data.blobs import blob_digests
from fedvlm.data.images import decode_image
from fedvlm.data.table import shown
from fedvlm.errors import DataError


def _numbers(values: Iterable[Hashable]) -> NDArray[np.int64]:
    """Number equal values alike, in the order of their first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(v, len(numbers)) for v in values], dtype=np.int64)


@dataclass(frozen=True)
class ImageTextData:
    """Image–caption pairs; images stay encoded, and on disk where they can, until asked for.

    Attributes:
        name: What the data is called in results.
        encoded: Encoded image files (PNG, JPEG, WebP), N of them.
        captions: N captions.
        concepts: Shape (N,), int64; pairs that show the same thing share a number.
        domains: Shape (N,), int64, index into `domain_names` (who drew or took the picture).
        topics: Shape (N,), int64, index into `topic_names`.
        public: Shape (N,), bool; pairs of concepts that anybody may see (pretraining, negatives).
        domain_names: Names of the domains.
        topic_names: Names of the topics.
        contents: A hash of what each image shows, N of them; of the encoded files where None.
        ood_domain: The domain that is kept out of training for a test out of distribution; None
            where all are trained on.
        pretraining_domains: Domains whose public pairs the model was pretrained on.
        more: Other columns of the table that the pairs came from, N texts each.
    """

    name: str
    encoded: Sequence[bytes]
    captions: tuple[str, ...]
    concepts: NDArray[np.int64]
    domains: NDArray[np.int64]
    topics: NDArray[np.int64]
    public: NDArray[np.bool_]
    domain_names: tuple[str, ...]
    topic_names: tuple[str, ...]
    contents: Sequence[bytes] | None = None
    ood_domain: str | None = None
    pretraining_domains: tuple[str, ...] = ()
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {len(self.encoded), len(self.captions)}
        sizes |= {len(c) for c in (self.concepts, self.domains, self.topics, self.public)}
        sizes |= {len(column) for column in self.more.values()}
        sizes |= set() if self.contents is None else {len(self.contents)}
        if len(sizes) != 1:
            raise DataError(f"{self.name}: columns of different lengths {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.captions)

    def image(self, index: int) -> Image.Image:
        """Decode one image to RGB, transparency on white.

        Raises:
            DataError: The file is not an image that Pillow can read.
        """
        try:
            return decode_image(self.encoded[index])
        except DataError as error:
            caption = shown(self.captions[index])
            raise DataError(
                f"{self.name}: image {index} ({caption}) can't be read: {error}"
            ) from error

    def arrays(self, indices: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """Decode images to one array.

        Args:
            indices: Shape (B,).
            size: Side in pixels; images of another size are resized bicubically.

        Returns:
            Shape (B, size, size, 3), dtype uint8.
        """
        out = np.empty((len(indices), size, size, 3), dtype=np.uint8)
        for row, index in enumerate(indices):
            image = self.image(int(index))
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BICUBIC)
            out[row] = np.asarray(image)
        return out

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """Shape (N,), int64: pairs whose images show the same share a number, from 0 on.

        Numbered in the order of first appearance. A split, and a coin of membership, takes a group
        whole: two copies of one image apart from each other would make a leak or hide one.
        """
        if self.contents is not None:
            return _numbers(self.contents)
        return _numbers(blob_digests(self.encoded))

    @cached_property
    def distinct_captions(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """The C different captions, sorted, and for each pair the index of its own: shape (N,).

        Memory grows with the text, however long one caption is.
        """
        captions = tuple(sorted(set(self.captions)))
        number = {caption: index for index, caption in enumerate(captions)}
        return captions, np.array([number[caption] for caption in self.captions], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every image, caption and label, in hex.

        Where `contents` is known it counts too: what was kept of images that were decoded in
        another way (features, checkpoints) doesn't pass for what is seen now.
        """
        digest = hashlib.sha256()
        for blob, caption in zip(blob_digests(self.encoded), self.captions, strict=True):
            digest.update(blob)
            digest.update(caption.encode("utf-8", "surrogatepass") + b"\0")
        for column in (self.concepts, self.domains, self.topics, self.public):
            digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
        names = "\0".join((*self.domain_names, *self.topic_names))
        digest.update(names.encode("utf-8", "surrogatepass"))
        for content in self.contents or ():
            digest.update(content)
        return digest.hexdigest()
