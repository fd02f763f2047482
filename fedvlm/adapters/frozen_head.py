"""What heads on a frozen model share: public maps of features and captions, and wider embeddings.

A head leaves both towers as they are. It adds to the zero-shot score an inner product of an image's
whitened feature with a vector of the caption's, and so both embeddings become a little wider (see
`fedvlm.heads.scores`): whatever ranks by cosines ranks by these.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedvlm.errors import ConfigError, IntegrityError
from fedvlm.heads.control import Control, Kernel
from fedvlm.heads.rows import declared_rows, hashed_names
from fedvlm.heads.scores import joint_images, joint_texts
from fedvlm.heads.whitening import Whitening, identity_whitening
from fedvlm.models.embedded import stem_whitening
from fedvlm.models.stem import CHANNELS
from fedvlm.models.vlm import VLM, Inputs

SIZE = 255
"""Most directions that are kept of a feature; with the count a row of a sum is 256 long."""
MOST_ZERO_SHOT = 0.5
"""W of `joint_images`: what the zero-shot score never weighs more than."""
_STEM_CHANNELS = 4  # pixels of more channels than this are a stem's feature map


class FrozenHead(nn.Module):
    """A head whose public part is set from public pairs, and whose own part is one sum or map.

    Args:
        vlm: The model that it is for.
        seed: Of the hash that names captions; public.

    Attributes:
        declared: Shape (N,): names of the captions that the federation says it may hold, sorted;
            empty where it doesn't say.
        kept: Features of a party's own images, by rows: the frozen tower gives the same each round.
    """

    mean: Tensor
    matrix: Tensor
    centre: Tensor
    anchors: Tensor
    weights: Tensor
    declared: Tensor

    def __init__(self, vlm: VLM, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.kept: dict[bytes, NDArray[np.float64]] = {}
        self.set_public(shipped_whitening(vlm), None, vlm.embedding_dim)

    def set_public(self, whitening: Whitening, control: Control | None, embedding_dim: int) -> None:
        """Set what public pairs make of features and captions; what was learned starts anew.

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
        self.kept.clear()
        self.start_anew()

    def start_anew(self) -> None:
        """Forget what was learned."""

    def declare(self, inputs: Inputs) -> None:
        """Say which captions the federation may hold; what was learned starts anew.

        Args:
            inputs: Tokens of the captions.
        """
        names = np.unique(self._names(inputs))
        self.register_buffer("declared", torch.tensor(names.astype(np.float64)))
        self.start_anew()

    def numbers(self) -> dict[str, int | float]:
        """Return what a saved head needs beside its tensors."""
        return {"seed": self.seed, "width": self.width}

    @property
    def width(self) -> int:
        """D of a feature."""
        return self.matrix.shape[1]

    def features(self, embeddings: Tensor, inputs: Inputs) -> NDArray[np.float64]:
        """Return whitened unit features of images: shape (B, d)."""
        whitening = Whitening(as_array(self.mean), as_array(self.matrix))
        return whitening(raw_features(embeddings, inputs))

    def places_of(self, inputs: Inputs) -> NDArray[np.int64]:
        """Return each caption's place among the declared: shape (B,); -1 for none."""
        return declared_rows(self._names(inputs), as_array(self.declared).astype(np.int64))

    def _names(self, inputs: Inputs) -> NDArray[np.int64]:
        ids, mask = inputs["input_ids"].cpu().numpy(), inputs.get("attention_mask")
        seen = np.ones_like(ids, dtype=bool) if mask is None else mask.cpu().numpy() > 0
        names = [row[held].astype("<i8").tobytes() for row, held in zip(ids, seen, strict=True)]
        return hashed_names(names, self.seed)

    def images(self, embeddings: Tensor, inputs: Inputs) -> Tensor:
        """Widen image embeddings of shape (B, D), unit rows, to (B, D + d + 1), unit rows."""
        features = self.features(embeddings, inputs)
        return _unit(joint_images(as_array(embeddings), features, MOST_ZERO_SHOT))

    def texts(self, embeddings: Tensor, inputs: Inputs) -> Tensor:
        """Widen caption embeddings of shape (C, D), unit rows, to (C, D + d + 1), unit rows."""
        texts = as_array(embeddings)
        vectors, weights = self.read(texts, inputs)
        return _unit(joint_texts(texts, vectors, weights, MOST_ZERO_SHOT))

    def read(
        self, texts: NDArray[np.float64], inputs: Inputs
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what a caption's score is made of: w · cosine + vector · feature.

        Args:
            texts: Shape (C, D): their embeddings by the frozen tower.
            inputs: Their tokens.

        Returns:
            Vectors of a norm up to 1, shape (C, d), and w up to `MOST_ZERO_SHOT`, shape (C,).
        """
        raise ConfigError("this head reads no captions")

    def control(self, texts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the public-only control's prototypes of captions: shape (C, d)."""
        if not len(self.anchors):
            return np.zeros((len(texts), self.width))
        nothing = np.zeros((0, 0))
        anchors, weights = as_array(self.anchors), as_array(self.weights)
        control = Control(Kernel(), as_array(self.centre), anchors, weights, nothing)
        return control.prototypes(texts)


def raw_features(embeddings: Tensor, inputs: Inputs) -> NDArray[np.float64]:
    """Return frozen features: the stem's mean over places, or the embedding itself."""
    pixels = inputs.get("pixel_values")  # absent where a frozen tower's features were kept
    if pixels is not None and pixels.ndim == 4 and pixels.shape[1] >= _STEM_CHANNELS:
        return as_array(pixels.mean(dim=(2, 3)))
    return as_array(embeddings)


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


def load_tensors(
    head: FrozenHead, state: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], learned: str
) -> None:
    """Put a saved head's tensors in, each of the shape that it must have.

    Args:
        head: What they are for.
        state: Tensors by name, `head.` before each.
        shapes: What each must have; those that all heads have needn't be named.
        learned: The one that is a parameter.

    Raises:
        IntegrityError: One is missing, unknown, or of another shape.
    """
    anchors = len(state.get("head.anchors", torch.zeros(0)))
    dim = shapes["centre"][0]
    shapes = shapes | {
        "declared": (len(state.get("head.declared", torch.zeros(0))),),
        "anchors": (anchors, dim),
        "weights": (anchors, shapes["matrix"][1]),
    }
    if set(state) != {f"head.{name}" for name in shapes}:
        raise IntegrityError("the adapter was made for another model: other tensors")
    for name, shape in shapes.items():
        tensor = state[f"head.{name}"]
        tensor = tensor.double() if name == "declared" else tensor.float()
        if tuple(tensor.shape) != shape:
            raise IntegrityError(f"head.{name} has another shape: {tuple(tensor.shape)}")
        if name == learned:
            setattr(head, name, nn.Parameter(tensor))
        else:
            head.register_buffer(name, tensor)


def as_array(tensor: Any) -> NDArray[np.float64]:
    """Return a tensor as float64."""
    return tensor.detach().cpu().double().numpy()


def _unit(values: NDArray[np.float64]) -> Tensor:
    return nn.functional.normalize(torch.tensor(values, dtype=torch.float32), dim=-1)
