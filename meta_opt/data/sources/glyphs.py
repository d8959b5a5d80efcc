"""Letters and digits rendered in the text fonts that Matplotlib bundles."""

import functools
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meta_opt.data.records import check_split

CHARACTERS = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)

SIDE = 16
"""Side of the images in pixels."""

FONT_SIZES = (11, 12, 13, 14)
"""Font sizes in pixels per em; each font is rendered in each size, and the largest
fills the image."""

FONTS = {
    "train": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-BoldOblique",
        "DejaVuSans-Oblique",
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-BoldOblique",
        "DejaVuSansMono-Oblique",
        "STIXGeneral",
        "STIXGeneralBol",
        "STIXGeneralBolIta",
        "STIXGeneralItalic",
    ),
    "validation": (
        "DejaVuSerif",
        "DejaVuSerif-Bold",
        "DejaVuSerif-BoldItalic",
        "DejaVuSerif-Italic",
    ),
    "test": ("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
}
"""Fonts of each split, separated by family, so that no typeface is in two splits.

Symbol fonts and fonts without letters are excluded. Licences: DejaVu and STIX (free,
see the files beside the fonts), Computer Modern (BaKoMa, free).
"""


def glyph_arrays(
    split: str, font_sizes: Sequence[int] = FONT_SIZES
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Returns images of digits and letters, white on black, labelled by character.

    Args:
        split: ``train``, ``validation`` or ``test``, with disjoint font families.
        font_sizes: font sizes in pixels per em.

    Returns:
        Images uint8 [B, 16, 16], labels int32 [B], the K characters that labels index
        (:data:`CHARACTERS`), and the B names of the fonts.

    Raises:
        ValueError: if there is no such split.
        FileNotFoundError: if a font is missing.
        ImportError: if Matplotlib or Pillow is not installed.
    """
    check_split(split)
    fonts = FONTS[split]
    images = np.stack([_drawn(font, size) for font in fonts for size in font_sizes])
    labels = np.tile(np.arange(len(CHARACTERS), dtype=np.int32), len(images))
    names = [f for f in fonts for _ in range(len(font_sizes) * len(CHARACTERS))]
    return images.reshape(-1, SIDE, SIDE), labels, CHARACTERS, tuple(names)


@functools.cache
def _drawn(font: str, size: int) -> np.ndarray:
    """Renders all characters on a common baseline, each centred: uint8 [K, 16, 16]."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    if not path.is_file():
        raise FileNotFoundError(f"Matplotlib has no font {path}")
    face = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    images = np.empty((len(CHARACTERS), SIDE, SIDE), np.uint8)
    for image, character in zip(images, CHARACTERS, strict=True):
        left, _, right, _ = face.getbbox(character)
        square = Image.new("L", (SIDE, SIDE))
        start = (SIDE - round(right - left)) // 2 - round(left)
        ImageDraw.Draw(square).text(
            (start, SIDE - 4), character, fill=255, font=face, anchor="ls"
        )
        image[:] = np.asarray(square)
    images.setflags(write=False)
    return images
