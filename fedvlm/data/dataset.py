"""Image–caption pairs with the labels that make a federation of them."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fedvlm.errors import DataError


def decode_image(encoded: bytes) -> Image.Image:
    """Decode an image file to RGB, transparency on white.

    Raises:
        DataError: Not an image that Pillow can read.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        if image.mode in ("RGBA", "LA", "P"):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise DataError("not an image that Pillow knows") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(str(error)) from error


@dataclass(frozen=True)
class ImageTextData:
    """Image–caption pairs in memory; images stay encoded until they are asked for.

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

    def __post_init__(self) -> None:
        sizes = {len(self.encoded), len(self.captions)}
        sizes |= {len(c) for c in (self.concepts, self.domains, self.topics, self.public)}
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
            caption = self.captions[index]
            raise DataError(
                f"{self.name}: image {index} ({caption!r}) can't be read: {error}"
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
    def fingerprint(self) -> str:
        """SHA-256 over every image, caption and label, in hex."""
        digest = hashlib.sha256()
        for blob, caption in zip(self.encoded, self.captions, strict=True):
            digest.update(hashlib.sha256(blob).digest())
            digest.update(caption.encode() + b"\0")
        for column in (self.concepts, self.domains, self.topics, self.public):
            digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
        digest.update("\0".join((*self.domain_names, *self.topic_names)).encode())
        return digest.hexdigest()
