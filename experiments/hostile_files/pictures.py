"""Images, video clips and vector graphics."""

import functools
from collections.abc import Callable
from typing import Any

from experiments.hostile_files import samples
from experiments.hostile_files.format import Format, of_bytes


def _decode(data: bytes) -> Any:
    from meta_opt.data.preprocessing.images import decode

    return decode(data)


def _frames(data: bytes) -> Any:
    from meta_opt.data.preprocessing.images import count_frames, decode_frames

    return count_frames(data), decode_frames(data, 4)


def _svg(data: bytes) -> Any:
    from meta_opt.data.preprocessing.images import render_drawing
    from meta_opt.text_files import decode_text

    return render_drawing(decode_text(data), 64)


def _images() -> dict[str, Format]:
    made: dict[str, tuple[Callable[[], bytes], str]] = {
        "png": (functools.partial(samples.picture, "PNG"), "png"),
        "png_palette": (functools.partial(samples.picture, "PNG", "P"), "png"),
        "jpeg": (functools.partial(samples.picture, "JPEG"), "bytes"),
        "webp": (functools.partial(samples.picture, "WEBP", lossless=True), "bytes"),
        "gif": (functools.partial(samples.picture, "GIF"), "bytes"),
        "bmp": (functools.partial(samples.picture, "BMP"), "bytes"),
        "tiff": (
            functools.partial(samples.picture, "TIFF", compression="tiff_lzw"),
            "bytes",
        ),
        "tiff_grey": (functools.partial(samples.grey16, "TIFF"), "bytes"),
    }
    clips = {
        form: of_bytes(
            f"a.{form}", functools.partial(samples.animation, pillow), _frames, kind
        )
        for form, pillow, kind in (
            ("gif_frames", "GIF", "bytes"),
            ("webp_frames", "WEBP", "bytes"),
            ("apng_frames", "PNG", "png"),
        )
    }
    pictures = {
        name: of_bytes(f"a.{name}", make, _decode, kind)
        for name, (make, kind) in made.items()
    }
    return {
        **pictures,
        **clips,
        "svg": of_bytes("a.svg", lambda: samples.SVG, _svg, "svg"),
    }


FORMATS = _images()
