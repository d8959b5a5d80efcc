"""Animated emoji as a TFDS dataset: short clips with name, category and sentiment."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from meta_opt.data.catalog.builders.emoji import join_key
from meta_opt.data.catalog.emoji_artists import CATEGORIES, GOOGLE
from meta_opt.data.catalog.emoji_clips import CLIP_PACKAGES, CLIPS, NAMES, SENTIMENTS
from meta_opt.data.missing import MissingDataError
from meta_opt.data.preprocessing.images import decode_frames, fit_square
from meta_opt.data.records import SPLITS
from meta_opt.data.splits import split_of
from meta_opt.text_files import read_json_value

FRAMES = 8
SIDE = 32
"""Side of the stored frames in pixels."""

SENTIMENT_FILE = Path("emosent/data/Emoji_Sentiment_Data_v1.0.csv")


class Clip(NamedTuple):
    """An animation file with the metadata of its emoji."""

    codepoint: str
    name: str
    category: str
    sentiment: float
    file: Path


class AnimatedEmoji(tfds.core.GeneratorBasedBuilder):
    """Eight evenly spaced frames of each animated emoji, on white.

    Skin-tone variants and static emoji are excluded. ``sentiment`` is (positive -
    negative) / (negative + neutral + positive) over the tweets with the emoji, in [-1,
    1], or NaN. The split is by the hash of the code point, as in the dataset ``emoji``.
    """

    name = "animated_emoji"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "`make data` (or `python -m meta_opt.data.prepare --only animated_emoji`) "
        "downloads the packages and unpacks them in this folder: "
        + ", ".join(f"{p.name} to animated_emoji/{p.folder}" for p in CLIP_PACKAGES)
        + "."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Animated emoji with names, categories and sentiment.",
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Tensor(
                        shape=(FRAMES, SIDE, SIDE, 3), dtype=np.uint8, encoding="zlib"
                    ),
                    "codepoint": tfds.features.Text(),
                    "name": tfds.features.Text(),
                    "category": tfds.features.ClassLabel(names=CATEGORIES),
                    "sentiment": tfds.features.Scalar(np.float32),
                }
            ),
            supervised_keys=("video", "category"),
            homepage="https://github.com/lobehub/fluent-emoji",
            license="MIT (sentiment: CC-BY-SA-4.0)",
            citation="",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        clips = read_clips(Path(dl_manager.manual_dir) / "animated_emoji")
        return {
            split: self._generate_examples(
                [c for c in clips if split_of(c.codepoint) == split]
            )
            for split in SPLITS
        }

    def _generate_examples(
        self, clips: list[Clip]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for clip in clips:
            frames = decode_frames(clip.file.read_bytes(), FRAMES)
            if frames:
                yield (
                    clip.codepoint,
                    {
                        "video": np.stack([fit_square(f, SIDE) for f in frames]),
                        "codepoint": clip.codepoint,
                        "name": clip.name,
                        "category": clip.category,
                        "sentiment": clip.sentiment,
                    },
                )


def read_clips(root: Path) -> list[Clip]:
    """Returns the files of base emoji, animated or static, in order of code points.

    Raises:
        MissingDataError: if a package's files are missing.
    """
    files: dict[str, Path] = {}
    for package in CLIPS:
        folder = root / package.folder / package.members[0]
        found = {join_key(p.stem): p for p in sorted(folder.glob("*.webp"))}
        if not found:
            raise MissingDataError(f"{package.name} (*.webp)", folder, root.name)
        files = {**found, **files}
    names = root / NAMES.folder / GOOGLE.metadata[0]
    if not names.is_file():
        raise MissingDataError(f"{NAMES.name}@{NAMES.version}", names, root.name)
    sentiments = read_sentiments(root / SENTIMENTS.folder / SENTIMENT_FILE)
    clips = []
    for emoji in read_json_value(names):
        codepoint = join_key(emoji["unified"])
        if codepoint in files and emoji["category"] in CATEGORIES:
            clips.append(
                Clip(
                    codepoint=codepoint,
                    name=" ".join(emoji["name"].lower().split()),
                    category=emoji["category"],
                    sentiment=sentiments.get(codepoint, float("nan")),
                    file=files[codepoint],
                )
            )
    return sorted(clips)


def read_sentiments(file: Path) -> dict[str, float]:
    """Returns the mean sentiment of the tweets with an emoji, by code point.

    Raises:
        MissingDataError: if the file is missing.
    """
    if not file.is_file():
        raise MissingDataError("The Emoji Sentiment Ranking", file, "animated_emoji")
    sentiments = {}
    with open(file, encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            negative, neutral, positive = (
                int(row[column]) for column in ("Negative", "Neutral", "Positive")
            )
            total = negative + neutral + positive
            if total:
                key = join_key(row["Unicode codepoint"].removeprefix("0x"))
                sentiments[key] = (positive - negative) / total
    return sentiments
