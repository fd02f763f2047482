"""A run's head in private inference: the client's part is frozen and public, the captions' secret.

A head leaves both towers as they are. The client runs the frozen image tower in the clear, as it
runs the stem, and what is left for the two parties is the ranking: an inner product with vectors of
captions, which hold all that the federation learned, and which the owner alone has.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fedvlm.adapters.folding import frozen_features, head_of
from fedvlm.errors import ConfigError
from fedvlm.heads.whitening import Whitening
from fedvlm.inference.preparation import StemPreparation
from fedvlm.models import LoadedModel, load_model
from secure.smpc import register

HEAD_FILE = "head.npz"
FIELD = "features"


class FrozenFeatures(nn.Module):
    """Hands on what the client made of its image: the private part begins behind it."""

    def forward(self, features: Tensor) -> Tensor:
        """Return features of shape (B, D + d + 1) as they are."""
        return features


@register("FrozenFeatures")
def _frozen(builder, module, batch, path: str):
    x = builder.real(batch[FIELD], FIELD)
    return builder.linear(x, torch.eye(batch[FIELD].shape[1]), None, path or "frozen")


class HeadPreparation(StemPreparation):
    """The embedded model's stem, its frozen image tower, and a whitening by public pairs.

    Args:
        model: The embedded model with a head, of which the whitening alone is used.
    """

    public_parts = (
        *StemPreparation.public_parts,
        "the frozen image tower of the embedded model",
        "the whitening of features, by public pairs",
    )

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return features of shape (B, D + d + 1), unit rows; the last is zero."""
        pixels = super().__call__(images)
        return {FIELD: nn.functional.pad(frozen_features(self._model.vlm, pixels), (0, 1))}

    def write(self, folder: Path) -> None:
        """Write the stem's name and the whitening."""
        super().write(folder)
        head = head_of(self._model.vlm)
        with (folder / HEAD_FILE).open("wb") as file:
            np.savez(file, mean=head.mean.numpy(), matrix=head.matrix.numpy())

    @classmethod
    def read(cls, folder: Path) -> "HeadPreparation":
        """Read what `write` wrote.

        Raises:
            ConfigError: It can't be read, or is none for the embedded model.
        """
        from fedvlm.adapters.prototypes import PrototypeHead

        path = folder / HEAD_FILE
        try:
            with np.load(path, allow_pickle=False) as held:
                whitening = Whitening(held["mean"].astype(float), held["matrix"].astype(float))
        except Exception as error:  # zipfile, NumPy and our own each raise theirs
            raise ConfigError(f"{path} can't be read: {type(error).__name__}") from error
        model = load_model("embedded")
        head = PrototypeHead(model.vlm, 2, 0)
        if len(whitening.mean) != head.mean.shape[0]:
            raise ConfigError(
                f"{path} is for features of {len(whitening.mean)}, the embedded model has "
                f"{head.mean.shape[0]}; ask the model's owner for its whole public folder"
            )
        head.set_public(whitening, None, model.vlm.embedding_dim)
        model.vlm.head = head
        model.vlm.eval()
        return cls(model)
