"""Spoken letters and syllables of KLettres as a TFDS dataset (some 20 languages)."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from meta_opt.data.catalog.builders.speech import SPEECH
from meta_opt.data.missing import MissingDataError
from meta_opt.data.preprocessing.audio_files import read_clip
from meta_opt.data.records import SPLITS
from meta_opt.data.splits import split_of

FOLDER = Path("klettres/klettres-data/usr/share/klettres")
"""Folder of the package's contents below the manual folder."""

_KINDS = {"alphabet": "letter", "syllables": "syllable"}


class Utterance(NamedTuple):
    """An audio file with its entry in the index of its language."""

    path: str
    language: str
    text: str
    kind: str


class Klettres(tfds.core.GeneratorBasedBuilder):
    """Spoken letters and syllables with text and language, one recording per language.

    The split is by the hash of language and text. Each language has one speaker and one
    set of recordings, so that these are confounded with the language.
    """

    name = "klettres"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "`make data` (or `python -m meta_opt.data.prepare --only klettres`) downloads "
        "the Debian package klettres-data and unpacks it to klettres/klettres-data in "
        "this folder."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Spoken letters and syllables, 8 kHz mono, at most 1.5 s.",
            features=tfds.features.FeaturesDict(
                {
                    "speech": SPEECH,
                    "language": tfds.features.Text(),
                    "text": tfds.features.Text(),
                    "kind": tfds.features.Text(),
                    "path": tfds.features.Text(),
                }
            ),
            homepage="https://apps.kde.org/klettres/",
            license="GPL-2.0-or-later",
            citation="",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        root = Path(dl_manager.manual_dir) / FOLDER
        files = read_indices(root)
        if not files:
            raise MissingDataError("KLettres (*/sounds.xml)", root, self.name)
        return {
            split: self._generate_examples(
                root,
                [f for f in files if split_of(f"{f.language}/{f.text}") == split],
            )
            for split in SPLITS
        }

    def _generate_examples(
        self, root: Path, files: list[Utterance]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for file in files:
            yield file.path, {**file._asdict(), "speech": read_clip(root / file.path)}


def read_indices(root: Path) -> list[Utterance]:
    """Returns the recordings that the indices ``<language>/sounds.xml`` list, in order.

    Duplicate entries and missing files are skipped (the index of Indonesian has no
    recordings).

    Raises:
        xml.etree.ElementTree.ParseError: if an index is not well-formed.
    """
    found: dict[str, Utterance] = {}
    for index in sorted(root.glob("*/sounds.xml")):
        language = index.parent.name
        for group in ElementTree.parse(index).iterfind("language/*"):
            for sound in group.iterfind("sound"):
                path, text = sound.get("file", ""), sound.get("name", "").strip()
                if text and path not in found and (root / path).is_file():
                    kind = _KINDS.get(group.tag, group.tag)
                    found[path] = Utterance(path, language, text, kind)
    return sorted(found.values())
