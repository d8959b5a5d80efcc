"""Stamps of Tux Paint as a TFDS dataset: image, captions and spoken captions."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from meta_opt.data.catalog.builders.speech import SPEECH
from meta_opt.data.missing import MissingDataError
from meta_opt.data.preprocessing.audio_files import read_clip
from meta_opt.data.preprocessing.images import (
    decode,
    encode_png,
    fit_square,
    render_svg,
)
from meta_opt.data.records import SPLITS
from meta_opt.data.splits import split_of, title_key

SIDE = 64
"""Side of the stored images in pixels."""

FOLDER = Path("tuxpaint/tuxpaint-stamps-default/usr/share/tuxpaint/stamps")
"""Folder of the package's contents below the manual folder."""

_LEFT_OUT = "symbols"
"""The excluded category: letters, digits and coins."""


class Stamp(NamedTuple):
    """An image with its written and spoken captions.

    Attributes:
        key: path below the folder of stamps, without file extension.
        picture: the PNG file or, if there is none, the SVG file.
        caption: the English caption.
        captions: (language, text) of the other captions, by language.
        speech: (language, audio file), by language.
    """

    key: str
    picture: Path
    caption: str
    captions: tuple[tuple[str, str], ...]
    speech: tuple[tuple[str, Path], ...]

    @property
    def category(self) -> str:
        """The top-level folder."""
        return self.key.split("/")[0]


class Tuxpaint(tfds.core.GeneratorBasedBuilder):
    """Stamps on white with their captions, written and spoken, in many languages.

    The category of symbols is excluded. The split is by the hash of the English
    caption's letters, so that equal captions share a split.
    """

    name = "tuxpaint"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "`make data` (or `python -m meta_opt.data.prepare --only tuxpaint`) downloads "
        "the Debian package tuxpaint-stamps-default and unpacks it to "
        "tuxpaint/tuxpaint-stamps-default in this folder."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Photographs and drawings with captions. `captions` are in "
                "`caption_languages`; `speech` is the spoken captions, 8 kHz mono, one "
                "after the other: `speech_lengths` samples in `speech_languages`."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(SIDE, SIDE, 3), encoding_format="png"
                    ),
                    "caption": text(),
                    "captions": tfds.features.Sequence(text()),
                    "caption_languages": tfds.features.Sequence(text()),
                    "speech": SPEECH,
                    "speech_lengths": tfds.features.Sequence(np.int32),
                    "speech_languages": tfds.features.Sequence(text()),
                    "category": text(),
                    "key": text(),
                }
            ),
            homepage="https://tuxpaint.org/stamps/",
            license="GPL-2.0-only, with notes for single pictures",
            citation="",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        root = Path(dl_manager.manual_dir) / FOLDER
        stamps = read_stamps(root)
        if not stamps:
            raise MissingDataError("Tux Paint's stamps (*/*.txt)", root, self.name)
        return {
            split: self._generate_examples(
                [s for s in stamps if split_of(title_key(s.caption)) == split]
            )
            for split in SPLITS
        }

    def _generate_examples(
        self, stamps: list[Stamp]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for stamp in stamps:
            if stamp.picture.suffix == ".svg":
                picture = render_svg(stamp.picture.read_text("utf-8"), SIDE)
            else:
                picture = decode(stamp.picture.read_bytes())
            clips = [read_clip(file) for _, file in stamp.speech]
            yield (
                stamp.key,
                {
                    "image": io.BytesIO(encode_png(fit_square(picture, SIDE))),
                    "caption": stamp.caption,
                    "captions": [text for _, text in stamp.captions],
                    "caption_languages": [language for language, _ in stamp.captions],
                    "speech": np.concatenate([np.zeros(0, np.int16), *clips]),
                    "speech_lengths": [len(clip) for clip in clips],
                    "speech_languages": [language for language, _ in stamp.speech],
                    "category": stamp.category,
                    "key": stamp.key,
                },
            )


def read_stamps(root: Path) -> list[Stamp]:
    """Returns the stamps that have a caption and an image, in order of their keys."""
    stamps = []
    for file in sorted(root.rglob("*.txt")):
        key = file.relative_to(root).with_suffix("").as_posix()
        pictures = [file.with_suffix(s) for s in (".png", ".svg")]
        picture = next((p for p in pictures if p.is_file()), None)
        if picture is None or key.startswith(f"{_LEFT_OUT}/"):
            continue
        first, *others = file.read_text("utf-8-sig").splitlines() or [""]
        if first.strip():
            captions = _captions(others)
            stamps.append(Stamp(key, picture, first.strip(), captions, _speech(file)))
    return sorted(stamps)


def _captions(lines: list[str]) -> tuple[tuple[str, str], ...]:
    """Reads lines such as ``fr.utf8=Un canard.``; the last of each language counts."""
    found = {}
    for line in lines:
        language, separator, text = line.partition(".utf8=")
        if separator and text.strip():
            found[language.strip()] = text.strip()
    return tuple(sorted(found.items()))


def _speech(file: Path) -> tuple[tuple[str, Path], ...]:
    """Returns the files ``NAME_desc[_LANGUAGE].ogg``; English without ``_LANGUAGE``."""
    pattern = re.compile(re.escape(file.stem) + r"_desc(?:_([\w@]+))?\.(?:ogg|wav)")
    found = {}
    for sound in sorted(file.parent.iterdir()):
        if match := pattern.fullmatch(sound.name):
            found[match[1] or "en"] = sound
    return tuple(sorted(found.items()))
