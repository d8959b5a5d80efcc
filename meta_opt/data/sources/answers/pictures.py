"""Emoji of four artists and Tux Paint's stamps, with their names and categories.

They are read from the packages' original files, which are larger than the 64 pixels of
the prepared data sets, and keep the splits of those data sets.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from meta_opt.data.preprocessing.images import (
    decode,
    fit_width,
    render_drawing,
)
from meta_opt.data.splits import split_of, title_key

SOURCES = ("emoji", "tuxpaint")
"""Names of the sources; ``make data`` fetches their packages."""

_MIN_PICTURES = 3
"""Smallest number of stamps in a folder that counts as a category."""
_LONGEST_NAME = 4
"""Largest number of words of a caption that counts as a name."""
_STYLES = ("cartoon", "toys", "plastic")
"""Folders of stamps named after the style of drawing rather than the subject."""
_SPELT = {
    "arttools": "art tool",
    "auto": "car",
    "body_parts": "body part",
    "masstransit": "mass transit",
    "naturalforces": "natural force",
    "newyears": "new year",
    "roadsigns": "road sign",
}
_NOUNS = (
    *("amphibian", "bird", "bug", "building", "flower", "fruit", "mammal", "map"),
    *("reptile", "vegetable"),
)
_HEADS = ("animal", "face", "food", "place", "plant", "transport")
_ARTICLE = re.compile(r"(?:an?|the|some)\s+", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class NamedPicture:
    """An image with its name, keywords and categories.

    Attributes:
        key: path in the data set, without file extension.
        split: ``train``, ``validation`` or ``test``.
        name: name of the depicted thing.
        keywords: further terms for it.
        categories: category by name of the taxonomy.
        read: loads the image at most the given number of pixels wide; raises OSError or
            ValueError if it cannot be read.
        short: whether ``name`` is a short name rather than a sentence.
    """

    key: str
    split: str
    name: str
    keywords: tuple[str, ...]
    categories: dict[str, str]
    read: Callable[[int], Image.Image]
    short: bool = True


def read_pictures(source: str, data_dir: Path) -> Iterator[NamedPicture]:
    """The images of one of `SOURCES`, in the order of their keys.

    Args:
        source: name of the source.
        data_dir: the folder of datasets.

    Raises:
        MissingDataError: missing packages; the message has the command that fetches
            them.
    """
    root = data_dir / "downloads" / "manual"
    return (_emoji if source == "emoji" else _stamps)(root)


def subgroup_name(subcategory: str) -> str:
    """The name of a Unicode emoji subgroup in plain words.

    >>> [subgroup_name(s) for s in ("animal-mammal", "food-prepared", "sky & weather")]
    ['mammal', 'prepared food', 'sky & weather']
    """
    head, _, tail = subcategory.partition("-")
    if tail in _NOUNS:
        return tail
    if head in _HEADS and tail:
        return f"{tail.replace('-', ' ')} {head}"
    return subcategory.replace("-", " ")


def caption_name(caption: str) -> tuple[str, bool]:
    """The name in a stamp's caption, and whether it is a name rather than a sentence.

    >>> caption_name("An adjustable wrench."), caption_name("Drive slowly! School.")
    (('adjustable wrench', True), ('drive slowly! school', False))
    """
    text = " ".join(caption.lower().split()).rstrip(".")
    name = _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text
    plain = re.fullmatch(r"[a-z' -]+", name) is not None
    return name, plain and len(name.split()) <= _LONGEST_NAME


def _at_width(file: Path, width: int) -> Image.Image:
    if file.suffix == ".svg":
        return render_drawing(file.read_text("utf-8"), width)
    return fit_width(decode(file.read_bytes()), width)


def _emoji(root: Path) -> Iterator[NamedPicture]:
    from meta_opt.data.catalog.builders.emoji import read_drawings, read_entries
    from meta_opt.data.catalog.emoji_artists import ARTISTS

    folder = root / "emoji"
    drawings = {a.name: read_drawings(folder, a) for a in ARTISTS}
    for entry in read_entries(folder):
        if not all(entry.codepoint in files for files in drawings.values()):
            continue
        for artist, files in drawings.items():
            yield NamedPicture(
                key=f"{artist}/{entry.codepoint}",
                split=split_of(entry.codepoint),
                name=entry.name,
                keywords=tuple(tag for tag in entry.tags if tag != entry.name),
                categories={
                    "emoji group": entry.category.lower(),
                    "emoji subgroup": subgroup_name(entry.subcategory),
                },
                read=functools.partial(_at_width, files[entry.codepoint]),
            )


def _stamps(root: Path) -> Iterator[NamedPicture]:
    from meta_opt.data.catalog.builders.tuxpaint import FOLDER, read_stamps
    from meta_opt.data.missing import MissingDataError

    stamps = read_stamps(root / FOLDER)
    if not stamps:
        raise MissingDataError("Tux Paint's stamps", root / FOLDER, "tuxpaint")
    folders = {
        stamp.key: [f for f in stamp.key.split("/")[:-1] if f not in _STYLES]
        for stamp in stamps
    }
    counts = collections.Counter(parts[-1] for parts in folders.values())
    for stamp in stamps:
        first, last = folders[stamp.key][0], folders[stamp.key][-1]
        name, short = caption_name(stamp.caption)
        categories = {"stamp folder": _SPELT.get(first, first)}
        if last != first and counts[last] >= _MIN_PICTURES:
            categories["stamp subfolder"] = _SPELT.get(last, last)
        yield NamedPicture(
            key=f"stamps/{stamp.key}",
            split=split_of(title_key(stamp.caption)),
            name=name,
            keywords=(),
            categories=categories,
            read=functools.partial(_at_width, stamp.picture),
            short=short,
        )
