"""What a mitigation is made from: a client's own pairs, and public ones beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.data import ImageTextData, Splits
from fedvlm.data.emoji import quiet
from fedvlm.data.unsafe import UNSAFE
from fedvlm.errors import ConfigError
from fedvlm.models.processor import LoadedModel
from fedvlm.seeds import ExperimentSeed
from fedvlm.training.pairs import EncodedPairs, encode_pairs

PUBLIC = 256
"""Public pairs that a mitigation uses, at most."""
Rows = NDArray[np.int64]
PublicData = tuple[ImageTextData, Rows]
"""Pairs, and which rows of them are public."""


class Material(Protocol):
    """A dual encoder before training, with the pairs that it is for."""

    @property
    def model(self) -> LoadedModel:
        """The model, with a fresh adapter."""
        ...

    @property
    def data(self) -> ImageTextData:
        """Images with captions."""
        ...

    @property
    def pairs(self) -> EncodedPairs:
        """The same as the model sees them; of public rows it holds no images."""
        ...

    @property
    def splits(self) -> Splits:
        """Who holds what."""
        ...

    @property
    def seed(self) -> ExperimentSeed:
        """The experiment's."""
        ...

    def with_images(self, rows: Rows) -> EncodedPairs:
        """Return the pairs with images that can be asked for at some rows."""
        ...


@dataclass(frozen=True)
class Given:
    """What a party brings to a mitigation; none of it is the other side's.

    Attributes:
        listed: Captions to lead away from, or to forget.
        public: Public pairs of one's own, where the data have none.
    """

    listed: frozenset[str] = field(default_factory=lambda: frozenset(UNSAFE))
    public: PublicData | None = None


@dataclass(frozen=True)
class PublicPairs:
    """Some public pairs.

    Attributes:
        data: Whose rows they are.
        rows: Shape (M,).
        material: For whose model they are, and whose own pairs they are where `data` is its data.
    """

    data: ImageTextData
    rows: Rows
    material: Material

    @property
    def captions(self) -> list[str]:
        """Their M captions."""
        return [self.data.captions[row] for row in self.rows]

    @cached_property
    def pairs(self) -> EncodedPairs:
        """All pairs as the model sees them, with the images of these."""
        if self.data is self.material.data:
            return self.material.with_images(self.rows)
        return encode_pairs(self.data, self.material.model, quiet, self.rows)

    def images(self) -> dict[str, Tensor]:
        """Return image inputs, M rows."""
        return self.pairs.images(self.rows)

    def texts(self) -> Mapping[str, Tensor]:
        """Return caption inputs, M rows."""
        return self.pairs.captions(self.pairs.caption_of[self.rows])


def public_pairs(material: Material, given: Given) -> PublicPairs:
    """Draw public pairs by the seed: the data's own, or those that the party has beside them.

    Raises:
        ConfigError: There are none.
    """
    if len(material.splits.public):
        data, rows = material.data, material.splits.public
    elif given.public is not None and len(given.public[1]):
        data, rows = given.public
    else:
        raise ConfigError(
            f"this mitigation needs public pairs, and {material.data.name} has none; a node names "
            "some as public in its node.toml, and a simulation takes them from the embedded data"
        )
    chosen = np.sort(material.seed.numpy("repair").permutation(rows)[:PUBLIC])
    return PublicPairs(data, chosen, material)
