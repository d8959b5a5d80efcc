"""Emoji of four artists and Tux Paint's stamps, with their names and categories.

They are read from the packages' own files, which are larger than the 64 pixels of the
prepared data sets, and are in the splits of those.
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
"""Packages that ``make data`` brings."""

_MIN_PICTURES = 3
"""Of a folder of stamps, for it to be a category."""
_LONGEST_NAME = 4
"""Words of a caption that counts as a name."""
_STYLES = ("cartoon", "toys", "plastic")
"""Folders of stamps that say how something is drawn, not what it is."""
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
    """A picture and what is known of it.

    Attributes:
        key: its path in the data, without ending.
        split: ``train``, ``validation`` or ``test``.
        name: what it shows.
        keywords: further words for it.
        categories: its category by the taxonomy that it is from.
        read: gives the picture, at most so many pixels wide; raises OSError or
            ValueError where it cannot be read.
        short: whether the name is one, rather than a sentence.
    """

    key: str
    split: str
    name: str
    keywords: tuple[str, ...]
    categories: dict[str, str]
    read: Callable[[int], Image.Image]
    short: bool = True


def read_pictures(source: str, data_dir: Path) -> Iterator[NamedPicture]:
    """The pictures of one of `SOURCES`, in the order of their keys.

    Args:
        source: its name.
        data_dir: the folder of datasets.

    Raises:
        MissingDataError: packages that are not there; names the command that brings
            them.
    """
    root = data_dir / "downloads" / "manual"
    return (_emoji if source == "emoji" else _stamps)(root)


def subgroup_name(subcategory: str) -> str:
    """One of Unicode's subgroups of emoji in plain words.

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
    """What a stamp's caption names, and whether it is a name and no sentence.

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
