"""Reads the Open Clip Art library: images, and the RDF metadata of their SVG files."""

import dataclasses
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from meta_opt.data.missing import MissingDataError

_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"

CATEGORIES = (
    "animals",
    "buildings",
    "buttons",
    "computer",
    "containers",
    "decorations",
    "education",
    "electronics",
    "food",
    "geography",
    "logos",
    "office",
    "people",
    "plants",
    "recreation",
    "science",
    "shapes",
    "signs_and_symbols",
    "special",
    "tools",
    "transportation",
    "unsorted",
)
"""Top-level folders of the library."""

FOLDERS = {
    "png": Path("openclipart/openclipart-png/usr/share/openclipart/png"),
    "svg": Path("openclipart/openclipart-svg/usr/share/openclipart/svg"),
}
"""Folders of the packages' contents below the manual folder."""


@dataclasses.dataclass(frozen=True)
class ClipartFile:
    """An image of the library with the metadata of its SVG file.

    Attributes:
        path: PNG path below the ``png`` folder, with forward slashes.
        png: the PNG file.
        svg: the SVG file.
        title: ``dc:title``, cleaned by :func:`clean_title`; may be empty.
        description: ``dc:description``, white space collapsed.
        keywords: unique, non-empty ``dc:subject`` entries.
        licence: URL of the licence; empty if none is given.
        digest: SHA-256 of the PNG file, hexadecimal.
    """

    path: str
    png: Path
    svg: Path
    title: str
    description: str
    keywords: tuple[str, ...]
    licence: str
    digest: str

    @property
    def category(self) -> str:
        """The top-level folder."""
        return self.path.split("/")[0]

    @property
    def subcategory(self) -> str:
        """The folders below the category, joined by ``/``; may be empty."""
        return "/".join(self.path.split("/")[1:-1])


def clean_title(title: str) -> str:
    """Removes underscores, file extensions and "Clipart by ... -" from a title.

    >>> clean_title("Clipart by Jon A. Cruz - Norway")
    'Norway'
    >>> clean_title("as_trefle.svg")
    'as trefle'
    """
    title = re.sub(r"^\s*clip ?art by [^-]+ - ", "", title, flags=re.IGNORECASE)
    title = re.sub(r"\.(svg|png)\s*$", "", title, flags=re.IGNORECASE)
    return " ".join(title.replace("_", " ").split())


def read_metadata(svg: Path) -> tuple[str, str, tuple[str, ...], str]:
    """Returns title, description, keywords and licence from the RDF of an SVG file.

    Raises:
        xml.etree.ElementTree.ParseError: if the file is not well-formed.
    """
    root = ElementTree.parse(svg).getroot()
    work = next((e for e in root.iter() if e.tag.endswith("}Work")), None)
    if work is None:
        return "", "", (), ""
    keywords = dict.fromkeys(
        " ".join(li.text.split())
        for li in work.findall(f"{_DC}subject//{_RDF}li")
        if li.text and li.text.strip()
    )
    licence = next((e for e in work.iter() if e.tag.endswith("}license")), None)
    return (
        clean_title(work.findtext(f"{_DC}title") or ""),
        " ".join((work.findtext(f"{_DC}description") or "").split()),
        tuple(keywords),
        licence.get(f"{_RDF}resource", "") if licence is not None else "",
    )


def library_folders(manual: Path) -> tuple[Path, Path]:
    """The folders of PNG and SVG files, the arguments of `read_library`.

    Args:
        manual: the folder with the unpacked packages.

    Raises:
        MissingDataError: a missing folder; the message has the command that fetches it.
    """
    for kind, folder in FOLDERS.items():
        if not (manual / folder).is_dir():
            raise MissingDataError(
                f"Open Clip Art ({kind})", manual / folder, "openclipart"
            )
    return manual / FOLDERS["png"], manual / FOLDERS["svg"]


def read_library(png_root: Path, svg_root: Path) -> Iterator[ClipartFile]:
    """Yields each distinct image of the library once, in the order of its paths.

    Symbolic links, images without an SVG, duplicate files, and images tagged with the
    GPL (the library is public domain) are excluded.
    """
    seen: set[str] = set()
    for png in sorted(png_root.rglob("*.png")):
        relative = png.relative_to(png_root)
        svg = (svg_root / relative).with_suffix(".svg")
        if png.is_symlink() or not svg.is_file():
            continue
        digest = hashlib.sha256(png.read_bytes()).hexdigest()
        if digest in seen:
            continue
        title, description, keywords, licence = read_metadata(svg)
        if "GPL" in licence:
            continue
        seen.add(digest)
        yield ClipartFile(
            path=relative.as_posix(),
            png=png,
            svg=svg,
            title=title,
            description=description,
            keywords=keywords,
            licence=licence,
            digest=digest,
        )
