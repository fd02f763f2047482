"""Prototypes as an adapter: what was summed, and what public data makes of it.

The one trainable tensor is the sum, a row for each hash of a caption: what crosses the network.
All else is public, and decides how the sum is read.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedvlm.adapters.frozen_head import FrozenHead, as_array, feature_width, load_tensors
from fedvlm.errors import ConfigError
from fedvlm.heads.contributions import COUNT_SHARE, DECLARED_SHARE, image_terms
from fedvlm.heads.posterior import Prior, posterior_prototypes
from fedvlm.models.vlm import VLM, Inputs

_NUMBERS = ("seed", "width", "total", "std", "held")


class PrototypeHead(FrozenHead):
    """A sum of frozen features by caption, read as prototypes.

    Args:
        vlm: The model that it is for.
        rows: Rows of the sum.
        seed: Of the hash that deals captions to rows; public.

    Attributes:
        rows: Rows of the sum; as many as captions where those are declared.
        sums: Shape (rows, d + 1): the sum over all images, divided by `total`.
        total: Number of images that `sums` is divided by, a public number.
        std: Standard deviation of the noise on the sum, in images; 0 without DP.
        held: Mean number of images of a caption that is held, a public guess.
    """

    def __init__(self, vlm: VLM, rows: int, seed: int) -> None:
        self._hashed, self.total, self.std, self.held = rows, 1.0, 0.0, Prior.images
        super().__init__(vlm, seed)

    @property
    def rows(self) -> int:
        """Rows of the sum."""
        return len(self.declared) or self._hashed

    def start_anew(self) -> None:
        """Empty the sum."""
        self.sums = nn.Parameter(torch.zeros(self.rows, self.width + 1))

    def numbers(self) -> dict[str, int | float]:
        """Return what a saved head needs beside its tensors."""
        told = {"rows": self.rows, "total": self.total, "std": self.std, "held": self.held}
        return super().numbers() | told

    @property
    def prior(self) -> Prior:
        """What is expected of a row; less of it counts where captions are declared."""
        share = DECLARED_SHARE if len(self.declared) else COUNT_SHARE
        return Prior(images=self.held, share=share)

    def rows_of(self, inputs: Inputs) -> NDArray[np.int64]:
        """Return the rows of captions, by the hash of their tokens: shape (B,); -1 for none."""
        return self.places_of(inputs) if len(self.declared) else self._names(inputs) % self.rows

    def terms(
        self,
        features: NDArray[np.float64],
        rows: NDArray[np.int64],
        images: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return rows and vectors of what images add; see `fedvlm.heads.image_terms`."""
        held = rows >= 0
        share = self.prior.share
        _, places, vectors = image_terms(features[held], rows[held], images[held], self.rows, share)
        return places, vectors

    def read(
        self, texts: NDArray[np.float64], inputs: Inputs
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the expected prototypes of captions, and what their cosines weigh."""
        places = self.rows_of(inputs)
        rows = as_array(self.sums)[places] * self.total
        declared = places >= 0 if len(self.declared) else None
        found = posterior_prototypes(rows, self.std, self.control(texts), declared, self.prior)
        # All by one number, so that the longest fits; the zero-shot score with them.
        longest = self._longest()
        return found.vectors / longest, found.zero_shot / longest

    def _longest(self) -> float:
        """Return a length that no prototype exceeds, the same for every set of captions."""
        lengths = np.linalg.norm(as_array(self.sums), axis=1).max(initial=0.0) * self.total
        noisy = 1.1 * lengths / (self.prior.weight(self.std) + self.prior.images) + 1.0
        return max(1.0, noisy)


def loaded_head(vlm: VLM, content: dict[str, Any], state: dict[str, Tensor]) -> PrototypeHead:
    """Build the head that a folder holds.

    Raises:
        ConfigError: Its configuration is broken.
        IntegrityError: Its tensors don't fit each other, or the model.
    """
    content = {"held": Prior.images, **content}  # older folders don't say
    check_numbers(content, _NUMBERS)
    rows = content.get("rows")
    if type(rows) is not int or not 2 <= rows <= 1 << 20:
        raise ConfigError(f"rows must be a whole number in [2, 2^20], got {rows!r}")
    head = PrototypeHead(vlm, rows, int(content["seed"]))
    head.total, head.std = float(content["total"]), float(content["std"])
    head.held = float(content["held"])
    width = int(content["width"])
    shapes = {
        "mean": (feature_width(vlm),),
        "matrix": (feature_width(vlm), width),
        "centre": (vlm.embedding_dim,),
        "sums": (rows, width + 1),
    }
    load_tensors(head, state, shapes, "sums")
    return head


def check_numbers(content: dict[str, Any], names: tuple[str, ...]) -> None:
    """Refuse what are no numbers of a saved head: `seed` and `width` whole, all at least 0.

    Raises:
        ConfigError: Naming the first.
    """
    for name in names:
        value: Any = content.get(name)
        sound = type(value) is int or (type(value) is float and name not in ("seed", "width"))
        if not sound or not 0 <= value < 2**63 or not math.isfinite(value):
            raise ConfigError(f"{name} must be a number of at least 0, got {value!r}")
