"""A node's own pairs: what it trains on, and what it holds out for itself."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedvlm.data import ImageTextData, Splits
from fedvlm.data.blobs import blob_digests
from fedvlm.errors import DataError

HELD_OUT = 0.2
"""Share of a node's images that it trains on in no run."""
_LEAST = 2


def held_out(images: Sequence[bytes]) -> NDArray[np.bool_]:
    """Say of each image, by a hash of its content, whether its owner holds it out in every run."""
    share = np.array([int.from_bytes(each[:4], "big") / 2**32 for each in blob_digests(images)])
    return share < HELD_OUT


def own_splits(data: ImageTextData) -> Splits:
    """Split a node's own data by what its images show, whatever the run.

    An image is held out by its content's hash: with all its captions, in every run alike, and also
    when pairs are added later. So nothing that was ever held out has been trained on.

    Args:
        data: The node's pairs.

    Returns:
        Splits with one client, and a test part, which may be empty where there are few images.

    Raises:
        DataError: Fewer than two pairs are left to train on.
    """
    held = held_out(data.encoded)
    own, test = np.flatnonzero(~held), np.flatnonzero(held)
    if len(own) < _LEAST:
        raise DataError(
            f"{data.name} leaves {len(own)} pairs to train on; a node needs at least {_LEAST}"
        )
    none = own[:0]
    return Splits(
        clients=(own,),
        non_members=(none,),
        validation=none,
        test=test,
        ood=none,
        withheld=none,
        retention=none,
        public=none,
    )
