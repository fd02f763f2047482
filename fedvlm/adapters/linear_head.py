"""A linear head as an adapter: score τ·xᵀWu beside the public-only control.

The one trainable tensor is W. Its gradient is a sum of bounded terms of images, so that it is
learned by rounds of one clipped full-batch step: see `fedvlm.heads.linear`.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedvlm.adapters.frozen_head import FrozenHead, as_array, feature_width, load_tensors
from fedvlm.adapters.prototypes import check_numbers
from fedvlm.errors import ConfigError
from fedvlm.heads.linear import Candidates
from fedvlm.heads.text import TextMap
from fedvlm.heads.whitening import Whitening, identity_whitening, unit_rows
from fedvlm.models.vlm import VLM, Inputs

TEMPERATURE = 20.0
"""τ of the softmax and of the score."""
ZERO_SHOT = 0.3
"""What the cosine weighs in the control's score, beside the likeness with its prototype."""
_NUMBERS = ("seed", "width", "control_weight")


class LinearMapHead(FrozenHead):
    """A linear map from an image's whitened feature to the whitened space of captions.

    Args:
        vlm: The model that it is for.
        seed: Of the hash that names captions; public.

    Attributes:
        map: Shape (d, m): W.
        control_weight: What the control's score weighs beside the map's; above 0.
        candidates: The captions of the softmax that W is learned by; None where nothing is to be
            learned, as in a head that was loaded.
    """

    text_mean: Tensor
    text_matrix: Tensor

    def __init__(self, vlm: VLM, seed: int) -> None:
        self.control_weight, self.candidates = 5.0, None
        self._dim = vlm.embedding_dim
        super().__init__(vlm, seed)
        self.set_texts(TextMap(identity_whitening(self._dim)))

    def set_texts(self, texts: TextMap) -> None:
        """Set what captions' embeddings are whitened by; W starts anew."""
        self.register_buffer("text_mean", torch.tensor(texts.whitening.mean, dtype=torch.float32))
        self.register_buffer(
            "text_matrix", torch.tensor(texts.whitening.matrix, dtype=torch.float32)
        )
        self.start_anew()

    def start_anew(self) -> None:
        """Set W to zero: the control is all that is left."""
        columns = self.text_matrix.shape[1] if "text_matrix" in self._buffers else self._dim
        self.map = nn.Parameter(torch.zeros(self.width, columns))

    def learn_by(self, texts: NDArray[np.float64], own: bool) -> None:
        """Set the captions of the softmax.

        Args:
            texts: Shape (V, D): embeddings of the declared captions, or of a public bank.
            own: Whether an image's own captions stand beside them.
        """
        self.candidates = Candidates(self.mapped(texts), own)

    def mapped(self, texts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return captions' embeddings as W takes them: shape (N, m), norm at most 1."""
        return Whitening(as_array(self.text_mean), as_array(self.text_matrix))(texts)

    def numbers(self) -> dict[str, int | float]:
        """Return what a saved head needs beside its tensors."""
        return super().numbers() | {"control_weight": self.control_weight}

    def read(
        self, texts: NDArray[np.float64], inputs: Inputs
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the map's and the control's part of a score; what isn't declared has the last."""
        weights = as_array(self.map)
        held = np.ones(len(texts))
        if len(self.declared):
            held = (self.places_of(inputs) >= 0).astype(float)
        learned = TEMPERATURE * self.mapped(texts) @ weights.T * held[:, None]
        vectors = learned + self.control_weight * unit_rows(self.control(texts))
        longest = TEMPERATURE * float(np.linalg.norm(weights, 2)) + self.control_weight
        cosines = np.full(len(texts), ZERO_SHOT * self.control_weight)
        return vectors / longest, cosines / longest


def loaded_map(vlm: VLM, content: dict[str, Any], state: dict[str, Tensor]) -> LinearMapHead:
    """Build the head that a folder holds.

    Raises:
        ConfigError: Its configuration is broken.
        IntegrityError: Its tensors don't fit each other, or the model.
    """
    check_numbers(content, _NUMBERS)
    if not content["control_weight"] > 0:
        raise ConfigError("control_weight must be above 0")
    head = LinearMapHead(vlm, int(content["seed"]))
    head.control_weight = float(content["control_weight"])
    width, dim = int(content["width"]), vlm.embedding_dim
    columns = state.get("head.text_matrix", torch.zeros(0, 0)).shape[-1]
    shapes = {
        "mean": (feature_width(vlm),),
        "matrix": (feature_width(vlm), width),
        "centre": (dim,),
        "text_mean": (dim,),
        "text_matrix": (dim, columns),
        "map": (width, columns),
    }
    load_tensors(head, state, shapes, "map")
    return head
