"""Decoding of image files within a pixel budget, on white, and resizing to squares."""

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from meta_opt.data.preprocessing.panics import panics_as_errors
from meta_opt.data.preprocessing.svg_safety import checked_svg

# Of TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0

MAX_PIXELS = 4_000_000
"""Largest number of pixels of an image; larger files are refused (a few clip arts
exceed 10^8)."""


MAX_CLIP_PIXELS = 1_000_000_000
"""Largest number of pixels of all frames of an animation; larger files are refused."""

_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG"),
    *("PPM", "QOI", "TGA", "TIFF", "WEBP"),
)
"""Allowed formats of Pillow; PostScript is not, since another program would run it."""


class TooManyPixelsError(ValueError):
    """The file's header announces more than :data:`MAX_PIXELS` pixels."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image file to RGB, composited on white where it is transparent.

    The Exif orientation is applied. Greyscale images of 12 or 16 bits, and floats in
    [0, 1], are scaled to 8 bits.

    Args:
        data: a PNG, WebP, JPEG, ... file.
        max_pixels: largest number of pixels, which is checked in the header first.

    Returns:
        A Pillow image of mode RGB.

    Raises:
        TooManyPixelsError: if the image is larger than ``max_pixels``.
        OSError: if the file is damaged, of an unsupported format, or has pixel values
            whose white level is not defined (32-bit or signed integers, floats outside
            of [0, 1]).
    """
    with _damage_named(), _opened(data) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise TooManyPixelsError(
                f"the image is {width} x {height} pixels, more than {max_pixels:,}"
            )
        ImageOps.exif_transpose(image, in_place=True)
        return _on_white(image)


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header alone.

    Args:
        data: a PNG, WebP, JPEG, ... file.

    Raises:
        OSError: as `decode`.

    >>> size_of(encode_png(np.zeros((2, 3, 3), np.uint8)))
    (3, 2)
    """
    with _damage_named(), _opened(data) as image:
        return image.size


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an open image to the output format of `decode`.

    Args:
        image: an image of any mode, which is not modified.

    Returns:
        A Pillow image of mode RGB, on white, with its Exif orientation applied.
    """
    return _on_white(ImageOps.exif_transpose(image))


def decode_frames(
    data: bytes, count: int, max_pixels: int = MAX_PIXELS, *, repeat: bool = False
) -> list[Image.Image]:
    """Decodes frames of an animation, each to RGB on white.

    Of N frames, those with the indices ``i N // count`` are taken for i below
    ``count``: evenly spaced in a loop, beginning with the first.

    Args:
        data: a WebP, GIF, APNG, ... file.
        count: number of frames.
        max_pixels: largest number of pixels of a frame.
        repeat: whether frames are repeated if the clip has fewer than ``count``.

    Returns:
        ``count`` Pillow images of mode RGB; without ``repeat``, none if the clip has
        fewer frames.

    Raises:
        TooManyPixelsError: if a frame is larger than ``max_pixels``, or all frames
            together have more than `MAX_CLIP_PIXELS`.
        OSError: if the file is damaged or of a kind that Pillow does not know.
    """
    with _damage_named(), _opened(data) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise TooManyPixelsError(
                f"a frame is {width} x {height} pixels, more than {max_pixels:,}"
            )
        total = getattr(image, "n_frames", 1)
        if total < count and not repeat:
            return []
        # Decoding a frame requires decoding all frames before it.
        if width * height * total > MAX_CLIP_PIXELS:
            raise TooManyPixelsError(
                f"{total:,} frames of {width} x {height} pixels are more than "
                f"{MAX_CLIP_PIXELS:,}"
            )
        frames = []
        for i in range(count):
            image.seek(i * total // count)
            frames.append(_on_white(image).copy())
        return frames


def count_frames(data: bytes) -> int:
    """Number of frames of an image file; 1 if it is not an animation.

    Args:
        data: a WebP, GIF, APNG, ... file.

    Raises:
        TooManyPixelsError: if a frame exceeds Pillow's limit.
        OSError: if the file is damaged or of a kind that Pillow does not know.
    """
    with _damage_named(), _opened(data) as image:
        return getattr(image, "n_frames", 1)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_scaled_grey(image)).convert("RGB")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        # For PNGs of 16 bits per channel, Pillow keeps the high bytes of the pixels,
        # but not of the transparent colour.
        image.info["transparency"] = tuple(channel >> 8 for channel in key)
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _scaled_grey(image: Image.Image) -> np.ndarray:
    """Scales grey values of more than 8 bits to uint8 [h, w].

    Pillow itself would clip them at 255.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        white = 1.0
        # Values that are not finite fail this check, too.
        if not (values.min() >= 0 and values.max() <= white):
            raise OSError(
                f"its pixels are floats from {values.min():g} to {values.max():g}; "
                "only 0 (black) to 1 (white) can be read"
            )
    elif image.mode == "I" and image.format != "PPM":
        raise OSError(
            "its pixels are 32-bit or signed integers, of which none is known to be "
            "white; save it with 8 or 16 bits"
        )
    else:
        # Pillow scales a PGM to 16 bits, whatever its own maximum.
        (bits,) = tags.get(_BITS_PER_SAMPLE, (16,))
        white = 2.0**bits - 1
    scaled = np.round(255 * values / white).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    key = image.info.get("transparency")
    return scaled if key is None else np.where(values == key, np.uint8(255), scaled)


def _opened(data: bytes) -> Image.Image:
    """Opens an image without decoding it, and converts Pillow's size errors to ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=_known_formats())
    except UnidentifiedImageError:
        # Pillow's own message names the buffer.
        raise UnidentifiedImageError("not an image format that Pillow reads") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise TooManyPixelsError(str(error)) from error


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """The allowed formats that this version of Pillow supports."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    """Converts decoders' exceptions for damaged files, of any type, into OSError."""
    try:
        yield
    except (OSError, TooManyPixelsError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(str(error)) from error
    except Exception as error:
        raise OSError(
            f"the image is damaged ({type(error).__name__}: {error})"
        ) from error


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Returns the image with its longer side at most ``side`` pixels, aspect kept."""
    longest = max(image.size)
    if longest <= side:
        return image
    width, height = (max(1, round(n * side / longest)) for n in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def fit_square(
    image: Image.Image,
    size: int,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> np.ndarray:
    """Scales an RGB image to fit a square, padded with white, aspect kept.

    Args:
        image: a Pillow image of mode RGB.
        size: side of the square in pixels.
        resample: the filter.

    Returns:
        uint8 [size, size, 3].
    """
    if image.size == (size, size):
        return np.asarray(image)
    longest = max(image.size)
    width, height = (max(1, round(n * size / longest)) for n in image.size)
    scaled = image.resize((width, height), resample, reducing_gap=3.0)
    square = Image.new("RGB", (size, size), "white")
    square.paste(scaled, ((size - width) // 2, (size - height) // 2))
    return np.asarray(square)


def encode_png(image: Image.Image | np.ndarray) -> bytes:
    """Returns the image as the bytes of a PNG file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def render_svg(svg: str, side: int) -> Image.Image:
    """Renders an SVG on white with its longer side ``side`` pixels, aspect kept.

    System fonts are not used, so that the result is the same on every machine, and
    images in other files are not loaded (`meta_opt.data.preprocessing.svg_safety`).

    Args:
        svg: the document.
        side: pixels.

    Returns:
        A Pillow image of mode RGB.

    Raises:
        ValueError: if the document cannot be rendered.
        ImportError: if ``resvg-py`` is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError(
            "rendering SVG files needs resvg-py: pip install 'meta-opt[data]'"
        ) from error
    svg = checked_svg(svg, _check_picture)
    # With both width and height, the drawing is scaled to fit into them. Without a
    # resolution (DPI), lengths in physical units would be zero.
    with panics_as_errors("the renderer"):
        data = resvg_py.svg_to_bytes(
            svg_string=svg, width=side, height=side, dpi=96, skip_system_fonts=True
        )
    return decode(bytes(data))


def _check_picture(data: bytes) -> None:
    """Raises ValueError or OSError for an embedded image that must not be rendered."""
    with _damage_named(), _opened(data) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise TooManyPixelsError(f"{width} x {height} pixels")


WHITE = 250
"""Smallest grey level of a pixel that counts as white background."""
_PROBE = 256
"""Longer side in pixels of the preview in which a drawing is located on its page."""


def content_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Bounding box (left, top, right, bottom) of the non-white pixels, or None.

    Args:
        image: a Pillow image of mode RGB. A pixel is white if its darkest channel is
            at least `WHITE`.
    """
    darkest = ImageChops.darker(ImageChops.darker(*image.split()[:2]), image.split()[2])
    return darkest.point(lambda level: 255 * (level < WHITE)).getbbox()


def fit_width(image: Image.Image, width: int) -> Image.Image:
    """Returns the image at most ``width`` pixels wide, aspect kept.

    Narrower images are not enlarged, as with Pillow's ``thumbnail``.
    """
    if image.width <= width:
        return image
    height = max(1, round(image.height * width / image.width))
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def render_drawing(svg: str, width: int) -> Image.Image:
    """Renders an SVG cropped to its drawing, ``width`` pixels wide.

    Many drawings cover a tenth of their page and would be invisible if the whole page
    were rendered at 100 pixels. If the page would need more than `MAX_PIXELS`, the
    drawing is rendered smaller and enlarged.

    Args:
        svg: the document.
        width: pixels.

    Returns:
        A Pillow image of mode RGB on white, aspect kept.

    Raises:
        ValueError: if the document cannot be rendered, or is blank.
        TooManyPixelsError: if the drawing is so tall that at this width it has more
            than `MAX_PIXELS` pixels.
        ImportError: if ``resvg-py`` is not installed.
    """
    box = content_box(render_svg(svg, _PROBE))
    if box is None:
        raise ValueError("the drawing is empty, or white")
    # The bounding box is accurate to a pixel of the preview.
    left, top, right, bottom = box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1
    scale = width / (right - left)
    height = max(1, round((bottom - top) * scale))
    if width * height > MAX_PIXELS:
        raise TooManyPixelsError(
            f"the drawing is {width} x {height} pixels, more than {MAX_PIXELS:,}"
        )
    side = min(round(_PROBE * scale), math.isqrt(MAX_PIXELS))
    page = render_svg(svg, side)
    to_page = side / _PROBE
    corner = round(left * to_page), round(top * to_page)
    shrunk = to_page / scale  # 1 where the page is as large as it is needed.
    size = max(1, round(width * shrunk)), max(1, round(height * shrunk))
    drawing = Image.new("RGB", size, "white")
    drawing.paste(page, (-corner[0], -corner[1]))
    if size == (width, height):
        return drawing
    return drawing.resize((width, height), Image.Resampling.LANCZOS)
