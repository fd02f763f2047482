"""Image–caption data: the embedded emoji set, a folder of your own, partitions and splits."""

from fedvlm.data.dataset import ImageTextData
from fedvlm.data.emoji import load_emoji
from fedvlm.data.folder import load_folder
from fedvlm.data.images import decode_image
from fedvlm.data.partition import PARTITIONS
from fedvlm.data.splits import Splits, make_splits

__all__ = [
    "PARTITIONS",
    "ImageTextData",
    "Splits",
    "decode_image",
    "load_emoji",
    "load_folder",
    "make_splits",
]
