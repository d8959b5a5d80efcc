"""Every kind of pixel an image file may have, decoded to the right 8-bit colours."""

import io
import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image

from meta_opt.data.preprocessing.images import decode, decode_frames

GREY16 = np.array([[0, 257], [32896, 65535]], np.uint16)
GREY8 = np.array([[0, 1], [128, 255]], np.uint8)


def encoded(image, form, **settings):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, format=form, **settings)
    return buffer.getvalue()


def png16(colour_type, pixels, transparent=None):
    """A one-row PNG of 16 bits a channel, which Pillow does not write in colour."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", len(pixels), 1, 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header)]
    if transparent is not None:
        parts.append((b"tRNS", np.array(transparent, ">u2").tobytes()))
    row = b"\0" + np.array(pixels, ">u2").tobytes()
    parts += [(b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def pgm(values, white):
    height, width = values.shape
    return b"P5 %d %d %d\n" % (width, height, white) + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "data",
    [
        encoded(GREY16, "PNG"),
        encoded(GREY16, "TIFF"),
        encoded(GREY16.astype(">u2"), "TIFF"),
        encoded(65535 - GREY16, "TIFF", tiffinfo={262: 0}),
        encoded(GREY16, "JPEG2000", irreversible=False),
        pgm(GREY16, 65535),
        encoded((GREY16 / 65535).astype(np.float32), "TIFF"),
        encoded(GREY8, "PNG"),
    ],
    ids=["png", "tiff", "tiff-be", "white-is-0", "jpeg2000", "pgm", "float", "8-bit"],
)
def test_grey_of_any_depth_has_the_same_8_bits(data):
    found = np.asarray(decode(data))
    np.testing.assert_array_equal(found, np.repeat(GREY8[..., None], 3, axis=2))


def test_a_pgm_is_scaled_by_its_own_maximum():
    found = np.asarray(decode(pgm(np.array([[0, 2048, 4095]]), 4095)))
    assert found[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("colour_type", "pixels", "transparent", "expected"),
    [
        (2, [[65535, 32896, 257], [300, 0, 0]], None, [[255, 128, 1], [1, 0, 0]]),
        (
            2,
            [[300, 301, 302], [40000, 0, 0]],
            [300, 301, 302],
            [[255] * 3, [156, 0, 0]],
        ),
        (0, [[300], [40092]], [300], [[255] * 3, [156] * 3]),
        (4, [[32896, 65535], [0, 0]], None, [[128] * 3, [255] * 3]),
        (6, [[65535, 0, 0, 65535], [0, 0, 0, 0]], None, [[255, 0, 0], [255] * 3]),
    ],
    ids=["rgb", "rgb-transparent", "grey-transparent", "grey-alpha", "rgba"],
)
def test_16_bit_pngs_in_colour_and_with_transparency(
    colour_type, pixels, transparent, expected
):
    found = np.asarray(decode(png16(colour_type, pixels, transparent)))
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize(
    ("mode", "form", "expected"),
    [
        ("1", "PNG", (0, 0, 0)),
        ("L", "PNG", (81, 81, 81)),
        ("LA", "PNG", (81, 81, 81)),
        ("P", "GIF", (200, 30, 30)),
        ("PA", "TIFF", (200, 30, 30)),
        ("CMYK", "TIFF", (200, 30, 30)),
        ("CMYK", "JPEG", (200, 30, 30)),
        ("YCbCr", "TIFF", (200, 30, 30)),
        ("LAB", "TIFF", (200, 30, 30)),
        ("RGBX", "TIFF", (200, 30, 30)),
    ],
)
def test_other_modes(mode, form, expected):
    image = Image.new("RGB", (8, 8), (200, 30, 30))
    if mode in ("P", "PA"):
        image = image.quantize()
    image = image.convert(mode, dither=Image.Dither.NONE)
    data = encoded(image, form)
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("this version of Pillow cannot read what it writes")
    found = np.asarray(decode(data))
    np.testing.assert_allclose(found[2, 2], expected, atol=3)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0, 70000]], np.int32), "32-bit or signed integers"),
        (np.array([[-1.0, 1.0]], np.float32), "floats from -1 to 1"),
        (np.array([[0.0, 255.0]], np.float32), "floats from 0 to 255"),
        (np.array([[0.0, np.nan]], np.float32), "floats from nan to nan"),
    ],
)
def test_numbers_of_which_none_is_white_are_refused(pixels, message):
    with pytest.raises(OSError, match=message):
        decode(encoded(pixels, "TIFF"))


def test_frames_of_16_bits():
    frames = [Image.fromarray(GREY16 // (1 + i)) for i in range(3)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    first, second, third = (np.asarray(frame) for frame in decode_frames(data, 3))
    np.testing.assert_array_equal(first[..., 0], GREY8)
    assert [x[1, 1, 0] for x in (second, third)] == [127, 85]


def test_frames_of_one_file_are_pictures_of_their_own():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    found = [frame.getpixel((2, 2)) for frame in decode_frames(data, 3)]
    assert found == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_16_bits_are_turned_as_the_camera_was_held():
    exif = Image.Exif()
    exif[0x0112] = 6  # The top of the scene is at the right of the stored image.
    found = np.asarray(decode(encoded(GREY16, "PNG", exif=exif)))[..., 0]
    np.testing.assert_array_equal(found, np.rot90(GREY8, -1))


def test_what_is_no_picture_is_said_plainly():
    with pytest.raises(OSError, match=r"^not an image format that Pillow reads$"):
        decode(b"no picture")
