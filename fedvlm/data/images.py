"""Image files, decoded to RGB so that a model sees what a viewer shows.

Pillow reads the file; what it leaves to its caller is decided here: the tone curve of deep greys,
the orientation that a camera noted, transparency, and files that hold more than one picture.
"""

import hashlib
import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fedvlm.errors import DataError, one_line

# The limit on an image's size is twice the one that Pillow warns at. Its warning would come again
# at each read, and a filter for one call alone isn't safe among threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Pillow knows some forty formats more: rare ones, and one that it hands to another program.
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000")
_KNOWN = "PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, PPM, PGM and JPEG 2000"
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV")
_WHITE_IS_ZERO = 0
_PHOTOMETRIC = 262  # TIFF's tag of what a grey value means
_BLOCK = 1 << 20  # pixels of a deep grey that are scaled at a time
_HEADS = (
    (b"version https://git-lfs", "a Git LFS pointer and not the image; run: git lfs pull"),
    (b"%PDF", "a PDF; save the page that is meant as a PNG"),
    (b"\x1f\x8b", "compressed with gzip; unpack it, and save slices as PNG or TIFF"),
    (b"\x93NUMPY", "a NumPy array; save it as a PNG or TIFF"),
    (b"%!PS", "PostScript; render it to a PNG"),
    (b"8BPS", "a Photoshop document; export it as a PNG"),
)


def _other_kind(encoded: bytes) -> str | None:
    """Say what a file that is no image is, with the cure; None where it isn't known."""
    if not encoded:
        return "the file is empty"
    if encoded[128:132] == b"DICM":
        return (
            "a DICOM file, which isn't read here; save its pixels as a 16-bit PNG or TIFF "
            "(with pydicom, or dcm2pnm of DCMTK)"
        )
    if encoded[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return "a HEIC photograph, which isn't read here; save it as a JPEG or PNG"
    for head, kind in _HEADS:
        if encoded.startswith(head):
            return kind
    text = encoded[:2048].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<") and b"<svg" in text:
        return (
            "an SVG drawing, which isn't read here; render it to PNG (with resvg or rsvg-convert)"
        )
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page and not an image; download the image again"
    return None


def _deep_grey(image: Image.Image, inverted: bool) -> Image.Image:
    """Scale a grey image of more than 8 bits linearly: its smallest value black, its largest white.

    The bits that a file has say little of those that its pictures use (12 in 16, Hounsfield
    units, fractions), so the window is each image's own. A picture of one value is black; so is
    what isn't a number.
    """
    values = np.asarray(image)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise DataError("no pixel is a finite number")
    low, high = float(finite.min()), float(finite.max())
    scale = 255.0 / (high - low) if high > low else 0.0
    out = np.empty(values.shape, dtype=np.uint8)
    rows = max(1, _BLOCK // values.shape[1])
    for start in range(0, len(values), rows):
        block = values[start : start + rows].astype(np.float64)
        scaled = np.rint((block - low) * scale)
        scaled = 255.0 - scaled if inverted else scaled
        # +inf and -inf count as not a number: they say that there was no measurement.
        out[start : start + rows] = np.where(np.isfinite(block), scaled, 0.0)
    grey = Image.fromarray(out)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.paste(255, mask=Image.fromarray(np.where(values == clear, 255, 0).astype(np.uint8)))
    return grey


def _clear_colour(image: Image.Image, depth: int) -> None:
    """Bring PNG's transparent colour to the 8 bits that Pillow brings the pixels to."""
    clear = image.info.get("transparency")
    if image.mode == "RGB" and depth == 16 and isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif image.mode == "L" and depth in (2, 4) and isinstance(clear, int):
        image.info["transparency"] = clear * 255 // ((1 << depth) - 1)


def _decode(encoded: bytes) -> Image.Image:
    Image.init()
    image = Image.open(io.BytesIO(encoded), formats=[f for f in _FORMATS if f in Image.OPEN])
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format != "MPO":  # a phone's second picture is a preview or a depth map
        raise DataError(
            f"holds {pages} pages or frames, and which one is meant isn't known; save that one as "
            "a file of its own"
        )
    deep = image.mode.startswith(("I", "F"))
    if not deep and image.mode not in _MODES:
        raise DataError(f"of colour mode {image.mode}; save it as an RGB image")
    tags = getattr(image, "tag_v2", {})
    inverted = image.format == "TIFF" and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    image.load()
    image = ImageOps.exif_transpose(image)
    if deep:
        return _deep_grey(image, inverted).convert("RGB")
    if encoded.startswith(b"\x89PNG"):
        _clear_colour(image, encoded[24])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def decode_image(encoded: bytes) -> Image.Image:
    """Decode an image file to 8-bit RGB, as a viewer shows it.

    - Greys of more than 8 bits (16-bit, 32-bit, float) are scaled linearly from their own smallest
      to their own largest value. Colours of 16 bits keep their upper 8.
    - The camera's orientation (EXIF) is applied.
    - What is transparent is white, however the file says it.
    - CMYK is converted by the plain formula, and colour profiles are not applied.

    Args:
        encoded: The file's content: PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, PPM, PGM or JPEG 2000.

    Raises:
        DataError: Not such an image, a broken one, one of several pages or frames, or one of more
            than 178 million pixels. The message is one line.
    """
    try:
        return _decode(encoded)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            "more than 178 million pixels, or broken; make it smaller: models take some hundred "
            "pixels a side"
        ) from error
    except UnidentifiedImageError as error:
        kind = _other_kind(encoded)
        raise DataError(kind or f"not an image that is read here ({_KNOWN}), or broken") from error
    except Exception as error:  # on broken files Pillow raises whatever its parsers stumble over
        raise DataError(f"broken: {one_line(error)}") from error


def content_of(image: Image.Image) -> bytes:
    """Return a SHA-256 of what a decoded image shows: equal for equal pixels, in any file."""
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    return digest.digest()
