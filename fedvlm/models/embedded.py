"""The embedded default: a small CLIP on a frozen stem, shipped with the library.

A stock Hugging Face `CLIPModel`: its pixels are the 320 x 3 x 3 feature map of EfficientNet-Lite0,
its patches 1 x 1. `simulations/pretrain_embedded.py` makes the checkpoint from public concepts.
"""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.data.dataset import ImageTextData
from fedvlm.models.processor import ImageInputs, LoadedModel
from fedvlm.models.stem import CHANNELS, GRID, IMAGE_SIZE, load_stem, stem_features
from fedvlm.models.vlm import VLM

MAX_TOKENS = 24
PAD, BOS, EOS = 0, 2, 3
VOCABULARY = 2048
EMBEDDING_DIM = 256


def embedded_config():
    """Return the configuration of the embedded model, a `CLIPConfig`."""
    from transformers import CLIPConfig

    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 160,
        "intermediate_size": 480,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "projection_dim": EMBEDDING_DIM,
        "hidden_act": "gelu",
    }
    vision = {
        "hidden_size": 192,
        "intermediate_size": 576,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "image_size": GRID,
        "patch_size": 1,
        "num_channels": CHANNELS,
        "projection_dim": EMBEDDING_DIM,
        "hidden_act": "gelu",
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBEDDING_DIM)


def checkpoint_dir() -> Path:
    """Return the folder of the shipped checkpoint."""
    return Path(str(resources.files("fedvlm.models"))) / "embedded_checkpoint"


class _StemInputs:
    """Cached stem features, looked up by row."""

    def __init__(self, features: NDArray[np.float16]) -> None:
        self._features = features

    def __call__(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        return {"pixel_values": torch.from_numpy(self._features[indices].astype(np.float32))}


class EmbeddedProcessor:
    """Turns images into stem features and captions into tokens."""

    def __init__(self, tokenizer_file: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.tokenizer.enable_padding(pad_id=PAD, pad_token="<pad>")  # noqa: S106
        self.tokenizer.enable_truncation(MAX_TOKENS)

    def images(
        self,
        data: ImageTextData,
        rows: NDArray[np.int64],
        progress: Callable[[str, int, int], None],
    ) -> ImageInputs:
        """Return the inputs of some of a data set's images, by row; cached on disk."""
        return _StemInputs(stem_features(data, rows, progress))

    def pixels(self, images: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Return the inputs of images of shape (B, 96, 96, 3), uint8."""
        if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3) or images.dtype != np.uint8:
            from fedvlm.errors import DataError

            raise DataError(
                f"expected uint8 images of {IMAGE_SIZE} x {IMAGE_SIZE} x 3, got {images.dtype} "
                f"{images.shape}; ImageTextData.arrays(indices, {IMAGE_SIZE}) makes them"
            )
        return {"pixel_values": load_stem()(torch.from_numpy(images))}

    def texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return ids and mask of captions, padded to the longest: shape (C, L), int64."""
        encoded = self.tokenizer.encode_batch(list(captions))
        return {
            "input_ids": torch.tensor([one.ids for one in encoded]),
            "attention_mask": torch.tensor([one.attention_mask for one in encoded]),
        }


def stem_whitening() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean, shape (320,), and matrix, shape (320, 255), that whiten the stem's features.

    By public pairs alone, within their concepts; `simulations/fit_whitening.py` makes it.
    """
    from safetensors.torch import load_file

    held = load_file(checkpoint_dir() / "whitening.safetensors")
    return held["mean"].double().numpy(), held["matrix"].double().numpy()


def load_embedded() -> LoadedModel:
    """Load the embedded model and its processor."""
    from safetensors.torch import load_file
    from transformers import CLIPModel

    folder = checkpoint_dir()
    # Weights are set right after: skip transformers' own initialisation, and its random draws.
    with torch.device("meta"):
        model = CLIPModel(embedded_config())
    state = {name: t.float() for name, t in load_file(folder / "model.safetensors").items()}
    model.to_empty(device="cpu")
    model.load_state_dict(state, strict=True)
    for tower, positions in (("text_model", MAX_TOKENS), ("vision_model", GRID * GRID + 1)):
        embeddings = getattr(model, tower).embeddings
        embeddings.position_ids = torch.arange(positions).expand(1, -1)
    return LoadedModel(VLM(model.eval()), EmbeddedProcessor(folder / "tokenizer.json"), "embedded")
