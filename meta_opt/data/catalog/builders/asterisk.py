"""Telephone prompts in five voices as a TFDS dataset (some 2,700 clips)."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from meta_opt.data.catalog.builders.speech import SPEECH
from meta_opt.data.missing import MissingDataError
from meta_opt.data.preprocessing.audio_files import read_clip
from meta_opt.data.records import SPLITS
from meta_opt.data.splits import split_of

LANGUAGES = ("en", "es", "fr", "it", "ru")
"""Languages, each with one voice in the package
``asterisk-core-sounds-<language>-wav``."""

SOUNDS = Path("usr/share/asterisk/sounds")
TEXTS = Path("usr/share/doc/asterisk-core-sounds-en")
TEXT_FILE = "core-sounds-en.txt.gz"


class Prompt(NamedTuple):
    """An audio file; ``key`` identifies the prompt across voices."""

    key: str
    voice: str
    text: str
    file: Path


class Asterisk(tfds.core.GeneratorBasedBuilder):
    """Prompts of the Asterisk telephone exchange with voice, key and English text.

    Each voice speaks its own language; ``text`` is the English transcript. Tones,
    silence, and prompts without an English version are excluded. The split is by the
    hash of the key, so that all voices of a prompt share a split.
    """

    name = "asterisk"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "`make data` (or `python -m meta_opt.data.prepare --only asterisk`) downloads "
        "the Debian packages asterisk-core-sounds-en and "
        f"asterisk-core-sounds-<language>-wav for {', '.join(LANGUAGES)} and unpacks "
        "each to asterisk/<package> in this folder."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Spoken telephone prompts, 8 kHz mono, at most 1.5 s.",
            features=tfds.features.FeaturesDict(
                {
                    "speech": SPEECH,
                    "voice": tfds.features.Text(),
                    "key": tfds.features.Text(),
                    "text": tfds.features.Text(),
                }
            ),
            homepage="https://www.asterisk.org",
            license="CC-BY-SA-3.0 (Russian: CC-BY-3.0)",
            citation="",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        prompts = read_prompts(Path(dl_manager.manual_dir) / "asterisk")
        return {
            split: self._generate_examples(
                [p for p in prompts if split_of(p.key) == split]
            )
            for split in SPLITS
        }

    def _generate_examples(
        self, prompts: list[Prompt]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for prompt in prompts:
            yield (
                f"{prompt.voice}/{prompt.key}",
                {
                    "speech": read_clip(prompt.file),
                    "voice": prompt.voice,
                    "key": prompt.key,
                    "text": prompt.text,
                },
            )


def read_texts(file: Path) -> dict[str, str]:
    """Returns the texts by key from a file of lines ``key: text``.

    Remarks in brackets are removed; texts that consist of a remark only, and clips of
    silence, are skipped.
    """
    texts = {}
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            key, colon, text = line.partition(":")
            text = " ".join(re.sub(r"\[[^\]]*\]", " ", text).split())
            if colon and text and not key.startswith((";", "silence/")):
                texts[key.strip()] = text
    return texts


def read_prompts(root: Path) -> list[Prompt]:
    """Returns the prompts of all voices that have a text, by key and voice.

    Raises:
        MissingDataError: if the texts or a voice are missing.
    """
    file = root / "asterisk-core-sounds-en" / TEXTS / TEXT_FILE
    if not file.is_file():
        raise MissingDataError("The text of the Asterisk prompts", file, "asterisk")
    texts = read_texts(file)
    prompts = []
    for language in LANGUAGES:
        package = f"asterisk-core-sounds-{language}-wav"
        sounds = root / package / SOUNDS
        files = sorted(sounds.glob("*/**/*.wav"))
        if not files:
            raise MissingDataError(f"{package} (*.wav)", sounds, "asterisk")
        for path in files:
            voice, *parts = path.relative_to(sounds).with_suffix("").parts
            key = "/".join(parts)
            if key in texts:
                prompts.append(Prompt(key, voice, texts[key], path))
    return sorted(prompts)
