"""Validation and batching of images that users pass in."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from meta_opt.data.preprocessing.images import decode, to_rgb
from meta_opt.data.preprocessing.pictures import MAX_PIXELS

Picture: TypeAlias = Image.Image | str | os.PathLike | np.ndarray
"""An open Pillow image, a file, or uint8 [H, W, 3]."""


def opened(image: Picture) -> Image.Image:
    """Opens an image as an RGB Pillow image.

    Raises:
        ValueError: a file cannot be read (the message names it), or an array is not
            uint8 [H, W, 3].
        TypeError: the type is not supported.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"an image of {image.dtype} {list(image.shape)} must be uint8 [H, W, 3]"
            )
        return Image.fromarray(image)
    if isinstance(image, str | os.PathLike):
        try:
            return decode(Path(image).read_bytes(), MAX_PIXELS)
        except (OSError, ValueError) as error:
            raise ValueError(f"{os.fspath(image)} cannot be read: {error}") from None
    raise TypeError(
        f"an image must be a path, a Pillow image or an array, not {type(image)}"
    )


def listed(name: str, given: Sequence) -> Sequence:
    """Returns a list argument; raises TypeError for a single item."""
    if isinstance(given, str | os.PathLike | Image.Image):
        raise TypeError(f"{name} takes a list, not one {type(given).__name__}")
    return given if isinstance(given, np.ndarray) else list(given)


def batches(rows: Sequence, size: int) -> Iterator[Sequence]:
    """Yields parts of ``size`` rows; the last may have fewer."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
