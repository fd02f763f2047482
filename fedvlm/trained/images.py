"""Images of files, for a trained model to look at."""

from pathlib import Path

from PIL import Image

from fedvlm.data.images import decode_image
from fedvlm.errors import DataError


def read_image(path: Path) -> Image.Image:
    """Read an image as RGB.

    Raises:
        DataError: It is missing or can't be read.
    """
    try:
        return decode_image(path.read_bytes())
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
