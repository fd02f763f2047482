"""Models of the sizes that people adapt, with random weights: for measurements, not for answers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.training import EncodedPairs

TARGETS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "fc1",
    "fc2",
    "visual_projection",
    "text_projection",
)
"""CLIP's linear layers by peft's short names: what this library's default targets match."""


@dataclass(frozen=True)
class ClipSize:
    """A CLIP's size.

    Attributes:
        vision: Width and layers of the image tower.
        text: The same of the text tower.
        image: Side of an image, pixels.
        patch: Side of a patch.
        dim: Width of the shared space.
        vocabulary: Rows of the token embedding.
        context: Places of a caption.
    """

    vision: tuple[int, int]
    text: tuple[int, int]
    image: int = 224
    patch: int = 32
    dim: int = 512
    vocabulary: int = 49408
    context: int = 77


B32 = ClipSize((768, 12), (512, 12))
L14 = ClipSize((1024, 24), (768, 12), patch=14, dim=768)
SMALL = ClipSize((256, 6), (128, 2), dim=128, vocabulary=1000)
TINY = ClipSize((64, 2), (64, 2), image=32, patch=8, dim=32, vocabulary=100, context=16)


def clip_of(size: ClipSize, dtype: torch.dtype = torch.float32) -> Any:
    """Return a CLIP of a size with random weights, the same at each call."""
    from transformers import CLIPConfig, CLIPModel

    def tower(width: int, layers: int) -> dict[str, Any]:
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": max(1, width // 64),
        }

    config = CLIPConfig(
        vision_config=tower(*size.vision) | {"image_size": size.image, "patch_size": size.patch},
        text_config=tower(*size.text)
        | {
            "vocab_size": size.vocabulary,
            "max_position_embeddings": size.context,
            "bos_token_id": size.vocabulary - 2,
            "eos_token_id": size.vocabulary - 1,
        },
        projection_dim=size.dim,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = CLIPModel(config)
    return model.to(dtype).eval()


@dataclass(frozen=True)
class RandomPixels:
    """Image inputs that are held in memory."""

    pixels: Tensor

    def __call__(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the inputs of rows."""
        return {"pixel_values": self.pixels[torch.from_numpy(indices)]}


def random_pairs(size: ClipSize, count: int, length: int = 16) -> EncodedPairs:
    """Return pairs of random pixels and random captions, all different."""
    rng = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, size.image, size.image, generator=rng)
    ids = torch.randint(1, size.vocabulary - 2, (count, length), generator=rng)
    ids[:, 0], ids[:, -1] = size.vocabulary - 2, size.vocabulary - 1
    rows = np.arange(count)
    none = np.zeros(count, dtype=np.int64)
    return EncodedPairs(
        images=RandomPixels(pixels),
        text={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        caption_of=rows,
        concepts=rows,
        domains=none,
        topics=none,
        domain_names=("all",),
        topic_names=("all",),
        groups=rows,
    )
