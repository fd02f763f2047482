"""D2, image files: decoded as a viewer shows them, or refused in one line with the cure."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedvlm.data.images import content_of, decode_image
from fedvlm.errors import DataError

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


def _file(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _pixels(encoded):
    image = decode_image(encoded)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def _png(depth, colour, row, width, clear=None, palette=None):
    """Write a PNG of one row by hand: Pillow doesn't write every depth."""

    def chunk(name, body):
        whole = name + body
        return struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))]
    parts += [chunk(b"PLTE", palette)] if palette else []
    parts += [chunk(b"tRNS", clear)] if clear else []
    parts += [chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
@pytest.mark.parametrize("top", [65535, 4095, 300])
def test_d2_sixteen_bit_greys_keep_their_tones(kind, top):
    # 12 bits in 16, as detectors write them, are as bright as full ones.
    values = np.rint(RAMP * top).astype(np.uint16)
    found = _pixels(_file(Image.fromarray(values), kind))[:, :, 0]
    assert np.abs(found - 255 * RAMP).max() <= 1
    assert 100 < found.mean() < 155  # neither white nor black


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint16, np.int16])
@pytest.mark.parametrize(("low", "high"), [(0, 1000), (100, 30_000)])
def test_d2_deep_tiffs_are_scaled_from_their_smallest_to_their_largest(dtype, low, high):
    values = np.rint(low + RAMP * (high - low)).astype(dtype)
    found = _pixels(_file(Image.fromarray(values.astype(dtype)), "TIFF"))[:, :, 0]
    expected = 255 * (values.astype(float) - low) / (high - low)
    assert np.abs(found - expected).max() <= 0.5


def test_d2_fractions_and_hounsfield_units():
    for values in (RAMP, RAMP * 4095 - 1024, RAMP * 1e-30, RAMP * 1e38 - 1e37):
        found = _pixels(_file(Image.fromarray(values.astype(np.float32)), "TIFF"))[:, :, 0]
        assert np.abs(found - 255 * RAMP).max() <= 0.51


def test_d2_what_is_no_number_is_black():
    values = RAMP.astype(np.float32).copy()
    values[0, :3] = np.nan, np.inf, -np.inf
    found = _pixels(_file(Image.fromarray(values), "TIFF"))[:, :, 0]
    assert (found[0, :3] == 0).all()
    assert found[-1, -1] == 255
    with pytest.raises(DataError, match="no pixel is a finite number"):
        decode_image(_file(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"))


def test_d2_one_value_is_black():
    assert (_pixels(_file(Image.fromarray(np.full((4, 4), 900, np.uint16)), "PNG")) == 0).all()


def test_d2_a_tiff_whose_white_is_zero():
    values = np.rint(RAMP * 65535).astype(np.uint16)
    encoded = _file(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    assert np.abs(_pixels(encoded)[:, :, 0] - 255 * (1 - RAMP)).max() <= 1
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    same = _pixels(_file(grey, "TIFF", tiffinfo={262: 0}))[:, :, 0]
    assert (same == np.asarray(grey)).all()  # Pillow inverts both when it writes and when it reads


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 65535), st.integers(1, 40), st.integers(1, 40))
def test_d2_the_tone_curve_never_turns_around(seed, top, height, width):
    values = np.random.default_rng(seed).integers(0, top + 1, (height, width)).astype(np.uint16)
    found = _pixels(_file(Image.fromarray(values), "PNG"))[:, :, 0]
    order = np.argsort(values, axis=None)
    assert (np.diff(found.ravel()[order]) >= 0).all()
    if values.min() < values.max():
        assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_d2_the_camera_s_orientation_is_applied(kind, orientation):
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :16] = 255  # a white corner, top left as it is to be seen
    stored = Image.fromarray(picture)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposes, inverses of the tag's
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    found = _pixels(_file(stored, kind, exif=exif, **options))
    assert found.shape == (32, 48, 3)
    assert np.abs(found[4:12, 4:12] - 255).max() < 16
    assert found[20:, 20:].max() < 16


def test_d2_an_orientation_of_a_deep_grey_is_applied():
    values = np.zeros((8, 12), np.uint16)
    values[0, 0] = 4095
    stored = Image.fromarray(np.rot90(values))
    exif = Image.Exif()
    exif[274] = 6
    assert _pixels(_file(stored, "PNG", exif=exif))[0, 0, 0] == 255


def _clear_images():
    red, white = [255, 0, 0], [255, 255, 255]
    rgb = Image.new("RGB", (2, 1))
    rgb.putpixel((1, 0), tuple(red))
    yield "RGB", _file(rgb, "PNG", transparency=(0, 0, 0)), [white, red]
    rgba = Image.new("RGBA", (2, 1))
    rgba.putpixel((1, 0), (*red, 255))
    yield "RGBA", _file(rgba, "PNG"), [white, red]
    yield "WebP", _file(rgba, "WEBP", lossless=True), [white, red]
    yield "TIFF", _file(rgba, "TIFF"), [white, red]
    palette = bytes([0, 0, 0, *red])
    yield "palette", _png(8, 3, bytes([0, 1]), 2, bytes([0, 255]), palette), [white, red]
    gif = Image.frombytes("P", (2, 1), bytes([0, 1]))
    gif.putpalette(palette)
    yield "GIF", _file(gif, "GIF", transparency=0), [white, red]
    yield "grey", _png(8, 0, bytes([0, 100]), 2, struct.pack(">H", 0)), [white, [100] * 3]
    yield "grey+alpha", _png(8, 4, bytes([0, 0, 100, 255]), 2), [white, [100] * 3]
    yield "1 bit", _png(1, 0, bytes([0b01000000]), 2, struct.pack(">H", 0)), [white, white]
    yield "2 bits", _png(2, 0, bytes([0b01100000]), 2, struct.pack(">H", 1)), [white, [170] * 3]
    yield "4 bits", _png(4, 0, bytes([0x5A]), 2, struct.pack(">H", 5)), [white, [170] * 3]
    deep = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0xFFFF, 0, 0)
    clear = struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)
    yield "16-bit RGB", _png(16, 2, deep, 2, clear), [white, red]
    deep = struct.pack(">3H", 0, 700, 1000)
    yield "16-bit grey", _png(16, 0, deep, 3, struct.pack(">H", 700)), [[0] * 3, white, white]


@pytest.mark.parametrize(
    ("encoded", "expected"), [pytest.param(e, x, id=n) for n, e, x in _clear_images()]
)
def test_d2_what_is_transparent_is_white(encoded, expected):
    assert _pixels(encoded)[0].tolist() == expected


def test_d2_cmyk_is_converted():
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for kind in ("JPEG", "TIFF"):
        assert np.abs(_pixels(_file(cyan, kind))[0, 0] - [0, 255, 255]).max() < 8


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_d2_several_pages_are_refused(kind):
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    encoded = _file(pages[0], kind, save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="holds 3 pages or frames"):
        decode_image(encoded)


def test_d2_a_phone_s_second_picture_is_no_page():
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    encoded = _file(pages[0], "MPO", save_all=True, append_images=pages[1:])
    assert np.abs(_pixels(encoded)[0, 0] - [255, 0, 0]).max() < 8


def test_d2_a_large_image_is_read_without_a_word():
    # In a process of its own, where no test runner swallows warnings.
    code = """
import io
from PIL import Image
from fedvlm.data.images import decode_image
out = io.BytesIO()
Image.new("L", (9_500, 9_500)).save(out, "PNG", compress_level=1)
for _ in range(2):
    print(decode_image(out.getvalue()).size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("", "(9500, 9500)\n" * 2)


def test_d2_a_huge_image_is_refused_before_it_is_unpacked():
    encoded = bytearray(_png(8, 0, b"\0", 1))
    encoded[16:24] = struct.pack(">II", 14_000, 14_000)
    encoded[29:33] = struct.pack(">I", zlib.crc32(encoded[12:29]))
    with pytest.raises(DataError, match="more than 178 million pixels"):
        decode_image(bytes(encoded))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "the file is empty"),
        (b"\0" * 128 + b"DICM" + b"\0" * 100, "DICOM .* 16-bit PNG or TIFF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "SVG .* render it to PNG"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 50, "HEIC"),
        (b"%PDF-1.7", "a PDF"),
        (b"\x93NUMPY\x01", "a NumPy array"),
        (b"hello", "not an image that is read here"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "not an image that is read here"),
    ],
)
def test_d2_what_is_no_image_is_named_with_its_cure(encoded, message):
    with pytest.raises(DataError, match=message):
        decode_image(encoded)


def test_d2_equal_pixels_are_equal_content_in_any_file():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8))
    files = [_file(image, "PNG"), _file(image, "TIFF"), _file(image, "WEBP", lossless=True)]
    files.append(_file(image, "PNG", compress_level=0))
    assert len({content_of(decode_image(encoded)) for encoded in files}) == 1
    assert content_of(image) != content_of(image.transpose(Image.Transpose.ROTATE_90))
    assert content_of(image) != content_of(image.resize((21, 3)))


def _seeds():
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (12, 10, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 4096, (12, 10), dtype=np.uint16))
    exif = Image.Exif()
    exif[274] = 6
    yield from (_file(rgb, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"))
    yield from (_file(deep, kind) for kind in ("PNG", "TIFF", "JPEG2000"))
    yield _file(rgb, "JPEG", exif=exif)
    yield _file(rgb, "TIFF", compression="tiff_lzw")
    yield _file(rgb.convert("RGBA"), "PNG")
    yield _file(rgb.convert("CMYK"), "JPEG")
    yield _file(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)])


SEEDS = tuple(_seeds())


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
    st.booleans(),
    st.binary(max_size=20),
)
def test_d2_any_bytes_are_decoded_or_refused_in_one_line(encoded, edits, cut, torn, tail):
    broken = bytearray(encoded)
    for place, value in edits:
        broken[int(place * (len(broken) - 1))] = value
    broken = bytes(broken[: int(cut * len(broken))] if torn else broken) + tail
    message = ""
    try:
        image = decode_image(broken)
    except DataError as error:
        message = str(error)
        assert message
    else:
        assert image.mode == "RGB"
        assert min(image.size) >= 1
    assert message.isprintable()
