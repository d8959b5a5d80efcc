"""Emoji of four artists as a TFDS dataset (1,852 emoji, 7,408 images)."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from meta_opt.data.catalog.emoji_artists import (
    ARTISTS,
    CATEGORIES,
    GOOGLE,
    OPENMOJI,
    Artist,
)
from meta_opt.data.missing import MissingDataError
from meta_opt.data.preprocessing.images import (
    decode,
    encode_png,
    fit_square,
    render_svg,
)
from meta_opt.data.records import SPLITS
from meta_opt.data.splits import split_of
from meta_opt.text_files import read_json_value

SIDE = 64
"""Side of the stored images in pixels."""


class EmojiEntry(NamedTuple):
    """The metadata of an emoji, independent of the artist."""

    codepoint: str
    name: str
    unicode_name: str
    tags: tuple[str, ...]
    category: str
    subcategory: str


def join_key(codepoint: str) -> str:
    """Normalises a code point, since artists write it differently.

    >>> join_key("2764-FE0F")
    '2764'
    """
    return codepoint.lower().replace("-fe0f", "")


class Emoji(tfds.core.GeneratorBasedBuilder):
    """All emoji that every artist has drawn, one image per artist, on white.

    Skin-tone variants are excluded. The split is by the hash of the code point, so that
    all drawings of an emoji share a split.
    """

    name = "emoji"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "`make data` (or `python -m meta_opt.data.prepare --only emoji`) downloads the "
        "npm packages and unpacks them in this folder: "
        + ", ".join(f"{a.package}@{a.version} to emoji/{a.folder}" for a in ARTISTS)
        + "."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Emoji drawn by four artists, with names, tags, categories.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(SIDE, SIDE, 3), encoding_format="png"
                    ),
                    "artist": tfds.features.Text(),
                    "codepoint": tfds.features.Text(),
                    "name": tfds.features.Text(),
                    "unicode_name": tfds.features.Text(),
                    "tags": tfds.features.Sequence(tfds.features.Text()),
                    "category": tfds.features.ClassLabel(names=CATEGORIES),
                    "subcategory": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "category"),
            homepage="https://unicode.org/emoji/",
            license=", ".join(f"{a.name}: {a.licence}" for a in ARTISTS),
            citation="",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        root = Path(dl_manager.manual_dir) / "emoji"
        drawings = {artist: read_drawings(root, artist) for artist in ARTISTS}
        entries = [
            entry
            for entry in read_entries(root)
            if all(entry.codepoint in files for files in drawings.values())
        ]
        return {
            split: self._generate_examples(
                [e for e in entries if split_of(e.codepoint) == split], drawings
            )
            for split in SPLITS
        }

    def _generate_examples(
        self, entries: list[EmojiEntry], drawings: dict[Artist, dict[str, Path]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for entry in entries:
            for artist, files in drawings.items():
                file = files[entry.codepoint]
                if artist.suffix == ".svg":
                    picture = render_svg(file.read_text("utf-8"), SIDE)
                else:
                    picture = decode(file.read_bytes())
                image = io.BytesIO(encode_png(fit_square(picture, SIDE)))
                yield (
                    f"{artist.name}/{entry.codepoint}",
                    {
                        **entry._asdict(),
                        "tags": list(entry.tags),
                        "artist": artist.name,
                        "image": image,
                    },
                )


def read_drawings(root: Path, artist: Artist) -> dict[str, Path]:
    """Returns an artist's files by code point."""
    folder = root / artist.folder / artist.images
    files = {join_key(p.stem): p for p in sorted(folder.glob(f"*{artist.suffix}"))}
    if not files:
        raise MissingDataError(
            f"{artist.package}@{artist.version} ({artist.suffix} drawings)",
            folder,
            "emoji",
        )
    return files


def _read_json(root: Path, artist: Artist) -> list[dict[str, Any]]:
    path = root / artist.folder / artist.metadata[0]
    if not path.is_file():
        raise MissingDataError(f"{artist.package}@{artist.version}", path, "emoji")
    return read_json_value(path)


def read_entries(root: Path) -> list[EmojiEntry]:
    """Returns the base emoji in order of code points, without skin-tone variants."""
    tagged = {join_key(e["hexcode"]): e for e in _read_json(root, OPENMOJI)}
    entries = []
    for emoji in _read_json(root, GOOGLE):
        codepoint = join_key(emoji["unified"])
        extra = tagged.get(codepoint)
        if extra is None or emoji["category"] not in CATEGORIES:
            continue
        entries.append(
            EmojiEntry(
                codepoint=codepoint,
                name=_words(extra["annotation"]),
                unicode_name=_words(emoji["name"]),
                tags=tuple(_words(t) for t in extra["tags"].split(",") if t.strip()),
                category=emoji["category"],
                subcategory=emoji["subcategory"],
            )
        )
    return sorted(entries)


def _words(text: str) -> str:
    """Lower case, without the colon of "flag: Norway"."""
    return " ".join(text.lower().replace(":", " ").split())
