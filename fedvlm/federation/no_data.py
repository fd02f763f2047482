"""A party without data: the server of a federation between owners, which needs none."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedvlm.config.whole import Config
from fedvlm.data import ImageTextData, Splits
from fedvlm.errors import ConfigError
from fedvlm.training import EncodedPairs

NO_DATA = "none"
"""What `data` is called where the server has none."""


def nothing() -> tuple[ImageTextData, EncodedPairs, Splits]:
    """Return data, inputs and splits without a single pair."""
    none = np.zeros(0, dtype=np.int64)
    data = ImageTextData(NO_DATA, (), (), none, none, none, none.astype(bool), (), ())

    def images(indices: NDArray[np.int64]) -> dict[str, Tensor]:
        raise ConfigError(f"the server has no images (data = {NO_DATA!r})")

    pairs = EncodedPairs(images, {}, none, none, none, none, (), (), none)
    return data, pairs, Splits((), (), *(none for _ in range(6)))


def require_without_data(config: Config) -> None:
    """Refuse what only a server with data can do.

    Raises:
        ConfigError: The run wants references, of which local and central training need all data.
    """
    if config.data.source == NO_DATA and config.training.references:
        raise ConfigError(
            "references train on everybody's pairs, and the server has none (data = 'none'); "
            "leave references at auto"
        )
