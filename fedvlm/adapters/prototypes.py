"""Prototypes as an adapter: what was summed, and what public data makes of it.

The one trainable tensor is the sum, a row for each hash of a caption: what crosses the network.
All else is public, and decides how the sum is read. Both embeddings become a little wider (see
`fedvlm.heads.scores`), so that whatever ranks by cosines ranks by these.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.heads.contributions import COUNT_SHARE, DECLARED_SHARE, image_terms
from fedvlm.heads.control import Control, Kernel
from fedvlm.heads.posterior import Prior, posterior_prototypes
from fedvlm.heads.rows import declared_rows, hashed_names
from fedvlm.heads.scores import joint_images, joint_texts
from fedvlm.heads.whitening import Whitening, identity_whitening
from fedvlm.models.embedded import stem_whitening
from fedvlm.models.stem import CHANNELS
from fedvlm.models.vlm import VLM, Inputs

SIZE = 255
"""Most directions that are kept of a feature; with the count a row is 256 long."""
_STEM_CHANNELS = 4  # pixels of more channels than this are a stem's feature map
_MOST_ZERO_SHOT = 0.5  # what `Prototypes.zero_shot` never exceeds
_NUMBERS = ("seed", "width", "total", "std")


class PrototypeHead(nn.Module):
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
    """

    mean: Tensor
    matrix: Tensor
    centre: Tensor
    anchors: Tensor
    weights: Tensor
    declared: Tensor

    def __init__(self, vlm: VLM, rows: int, seed: int) -> None:
        super().__init__()
        self.rows, self.seed, self.total, self.std = rows, seed, 1.0, 0.0
        self.set_public(shipped_whitening(vlm), None, vlm.embedding_dim)

    def set_public(self, whitening: Whitening, control: Control | None, embedding_dim: int) -> None:
        """Set what public pairs make of features and captions; the sum starts anew, empty.

        Args:
            whitening: Of features.
            control: Prototypes of public captions; None where there are none.
            embedding_dim: D of a caption's embedding.
        """
        none = np.zeros((0, embedding_dim))
        tensors = {
            "mean": whitening.mean,
            "matrix": whitening.matrix,
            "centre": np.zeros(embedding_dim) if control is None else control.centre,
            "anchors": none if control is None else control.anchors,
            "weights": np.zeros((0, whitening.size)) if control is None else control.weights,
        }
        self.register_buffer("declared", torch.zeros(0, dtype=torch.float64))
        for name, value in tensors.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))
        self.sums = nn.Parameter(torch.zeros(self.rows, whitening.size + 1))

    def declare(self, inputs: Inputs) -> None:
        """Give each of these captions a row of its own, and none to others; the sum starts anew.

        Args:
            inputs: Tokens of the captions.
        """
        names = np.unique(self._names(inputs))
        self.rows = len(names)
        self.register_buffer("declared", torch.tensor(names.astype(np.float64)))
        self.sums = nn.Parameter(torch.zeros(self.rows, self.width + 1))

    def numbers(self) -> dict[str, int | float]:
        """Return what a saved head needs beside its tensors."""
        return {
            "rows": self.rows,
            "seed": self.seed,
            "width": self.width,
            "total": self.total,
            "std": self.std,
        }

    @property
    def prior(self) -> Prior:
        """What is expected of a row; less of it counts where captions are declared."""
        return Prior(share=DECLARED_SHARE if len(self.declared) else COUNT_SHARE)

    @property
    def width(self) -> int:
        """D of a prototype."""
        return self.sums.shape[1] - 1

    def features(self, embeddings: Tensor, inputs: Inputs) -> NDArray[np.float64]:
        """Return whitened unit features of images: shape (B, d)."""
        whitening = Whitening(_array(self.mean), _array(self.matrix))
        return whitening(raw_features(embeddings, inputs))

    def rows_of(self, inputs: Inputs) -> NDArray[np.int64]:
        """Return the rows of captions, by the hash of their tokens: shape (B,); -1 for none."""
        names = self._names(inputs)
        if len(self.declared):
            return declared_rows(names, _array(self.declared).astype(np.int64))
        return names % self.rows

    def _names(self, inputs: Inputs) -> NDArray[np.int64]:
        ids, mask = inputs["input_ids"].cpu().numpy(), inputs.get("attention_mask")
        seen = np.ones_like(ids, dtype=bool) if mask is None else mask.cpu().numpy() > 0
        names = [row[held].astype("<i8").tobytes() for row, held in zip(ids, seen, strict=True)]
        return hashed_names(names, self.seed)

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

    def images(self, embeddings: Tensor, inputs: Inputs) -> Tensor:
        """Widen image embeddings of shape (B, D), unit rows, to (B, D + d + 1), unit rows."""
        features = self.features(embeddings, inputs)
        return _unit(joint_images(_array(embeddings), features, _MOST_ZERO_SHOT))

    def texts(self, embeddings: Tensor, inputs: Inputs) -> Tensor:
        """Widen caption embeddings of shape (C, D), unit rows, to (C, D + d + 1), unit rows."""
        texts = _array(embeddings)
        places = self.rows_of(inputs)
        rows = _array(self.sums)[places] * self.total
        declared = places >= 0 if len(self.declared) else None
        found = posterior_prototypes(rows, self.std, self._control(texts), declared, self.prior)
        # All by one number, so that the longest fits; the zero-shot score with them.
        longest = self._longest()
        vectors, weights = found.vectors / longest, found.zero_shot / longest
        return _unit(joint_texts(texts, vectors, weights, _MOST_ZERO_SHOT))

    def _control(self, texts: NDArray[np.float64]) -> NDArray[np.float64]:
        if not len(self.anchors):
            return np.zeros((len(texts), self.width))
        nothing = np.zeros((0, 0))
        anchors, weights = _array(self.anchors), _array(self.weights)
        control = Control(Kernel(), _array(self.centre), anchors, weights, nothing)
        return control.prototypes(texts)

    def _longest(self) -> float:
        """Return a length that no prototype exceeds, the same for every set of captions."""
        lengths = np.linalg.norm(_array(self.sums), axis=1).max(initial=0.0) * self.total
        noisy = 1.1 * lengths / (self.prior.weight(self.std) + self.prior.images) + 1.0
        return max(1.0, noisy)


def raw_features(embeddings: Tensor, inputs: Inputs) -> NDArray[np.float64]:
    """Return frozen features: the stem's mean over places, or the embedding itself."""
    pixels = inputs["pixel_values"]
    if pixels.ndim == 4 and pixels.shape[1] >= _STEM_CHANNELS:
        return _array(pixels.mean(dim=(2, 3)))
    return _array(embeddings)


def feature_width(vlm: VLM) -> int:
    """Return the width of `raw_features` for a model."""
    config: Any = vlm.backbone.config
    channels = int(config.vision_config.num_channels)
    return channels if channels >= _STEM_CHANNELS else vlm.embedding_dim


def shipped_whitening(vlm: VLM) -> Whitening:
    """Return the stem's whitening for models on it, else the map that only scales to norm 1."""
    width = feature_width(vlm)
    if width != CHANNELS or width == vlm.embedding_dim:
        return identity_whitening(width)
    return Whitening(*stem_whitening())


def loaded_head(vlm: VLM, content: dict[str, Any], state: dict[str, Tensor]) -> PrototypeHead:
    """Build the head that a folder holds.

    Raises:
        ConfigError: Its configuration is broken.
        IntegrityError: Its tensors don't fit each other, or the model.
    """
    for name in _NUMBERS:
        value: Any = content.get(name)
        whole = type(value) is int
        sound = whole or (type(value) is float and name in ("total", "std"))
        if not sound or not 0 <= value < 2**63 or not math.isfinite(value):
            raise ConfigError(f"{name} must be a number of at least 0, got {value!r}")
    rows = content.get("rows")
    if type(rows) is not int or not 2 <= rows <= 1 << 20:
        raise ConfigError(f"rows must be a whole number in [2, 2^20], got {rows!r}")
    head = PrototypeHead(vlm, rows, int(content["seed"]))
    head.total, head.std = float(content["total"]), float(content["std"])
    width, dim = int(content["width"]), vlm.embedding_dim
    anchors = len(state.get("head.anchors", torch.zeros(0)))
    shapes = {
        "declared": (len(state.get("head.declared", torch.zeros(0))),),
        "mean": (feature_width(vlm),),
        "matrix": (feature_width(vlm), width),
        "centre": (dim,),
        "anchors": (anchors, dim),
        "weights": (anchors, width),
        "sums": (rows, width + 1),
    }
    if set(state) != {f"head.{name}" for name in shapes}:
        raise IntegrityError("the adapter was made for another model: other tensors")
    for name, shape in shapes.items():
        tensor = state[f"head.{name}"]
        tensor = tensor.double() if name == "declared" else tensor.float()
        if tuple(tensor.shape) != shape:
            raise IntegrityError(f"head.{name} has another shape: {tuple(tensor.shape)}")
        if name == "sums":
            head.sums = nn.Parameter(tensor)
        else:
            head.register_buffer(name, tensor)
    return head


def _array(tensor: Any) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()


def _unit(values: NDArray[np.float64]) -> Tensor:
    return nn.functional.normalize(torch.tensor(values, dtype=torch.float32), dim=-1)
