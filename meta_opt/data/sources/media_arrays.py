"""Prepared datasets of speech, stamps and clips as arrays, for in-memory tasks."""

import collections
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from meta_opt.data.catalog.emoji_artists import CATEGORIES
from meta_opt.data.preprocessing.audio import RATE, SECONDS, log_mel
from meta_opt.data.preprocessing.images import decode, fit_square
from meta_opt.data.records import SPLITS, check_split
from meta_opt.data.sources.tfds_sources import read_records
from meta_opt.types import near_match


def klettres_arrays(
    split: str,
    data_dir: str | os.PathLike | None = None,
    min_clips: int = 40,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns spoken letters and syllables, labelled by language.

    Args:
        split: ``train``, ``validation`` or ``test``.
        data_dir: the folder of datasets; None takes :func:`meta_opt.data.data_dir`.
        min_clips: smallest number of clips of a language, over all splits.

    Returns:
        Log-mel spectrograms float32 [B, 32, 24] of
        `meta_opt.data.preprocessing.audio.log_mel`, labels int32 [B], and the K
        language codes, which are the same for every split.

    Raises:
        MissingDataError: if the dataset has not been prepared; it names the command.
        ValueError: if there is no such split.
    """
    check_split(split)
    parts = {s: sorted_rows("klettres", s, data_dir, "path") for s in SPLITS}
    names = frequent(
        (r["language"] for part in parts.values() for r in part), min_clips
    )
    rows = [row for row in parts[split] if row["language"] in names]
    mel = spectrograms([row["speech"] for row in rows])
    return mel, label_column(rows, "language", names), names


class AsteriskArrays(NamedTuple):
    """Telephone prompts: B clips of V voices and K prompts.

    Attributes:
        mel: log-mel spectrograms, float32 [B, 32, 24].
        voice: int32 [B], an index into ``voices``.
        key: int32 [B], an index into ``keys``.
        texts: B English transcripts.
        voices: V names of voices, sorted.
        keys: K names of prompts, sorted.
    """

    mel: np.ndarray
    voice: np.ndarray
    key: np.ndarray
    texts: tuple[str, ...]
    voices: tuple[str, ...]
    keys: tuple[str, ...]


def asterisk_arrays(
    split: str,
    data_dir: str | os.PathLike | None = None,
    *,
    held_out: str | None = None,
    folders: Sequence[str] | None = None,
) -> AsteriskArrays:
    """Returns the prompts that all voices have and that were not truncated.

    There are two ways to split them. By default all voices of a prompt share a split,
    for classification of voices. With ``held_out``, train has all prompts of the other
    voices, and the prompts of the held-out voice alternate between validation and test,
    for classification of prompts.

    Args:
        split: ``train``, ``validation`` or ``test``.
        data_dir: the folder of datasets; None takes :func:`meta_opt.data.data_dir`.
        held_out: name of the held-out voice; None uses the stored split.
        folders: folders of prompts to keep, such as ``digits``, ``letters`` and
            ``phonetic``; None keeps all.

    Returns:
        The clips of the split; ``voices`` and ``keys`` are the same for every split.

    Raises:
        MissingDataError: if the dataset has not been prepared; it names the command.
        ValueError: if there is no such split or voice, or no prompt is left.
    """
    kept, voices, keys = asterisk_rows(split, data_dir, held_out, folders)
    return AsteriskArrays(
        spectrograms([row["speech"] for row in kept]),
        label_column(kept, "voice", voices),
        label_column(kept, "key", keys),
        tuple(row["text"] for row in kept),
        voices,
        keys,
    )


def asterisk_rows(
    split: str,
    data_dir: str | os.PathLike | None,
    held_out: str | None,
    folders: Sequence[str] | None,
) -> tuple[list[dict[str, Any]], tuple[str, ...], tuple[str, ...]]:
    """The records of `asterisk_arrays`, the voices and the keys."""
    check_split(split)
    rows = [
        {**row, "split": part}
        for part in SPLITS
        for row in read_records("asterisk", part, data_dir)
    ]
    voices = tuple(sorted({row["voice"] for row in rows}))
    if held_out is not None and held_out not in voices:
        raise ValueError(
            f"no voice {held_out!r}{near_match(held_out, voices)} "
            f"(voices: {', '.join(voices)})"
        )
    whole = [
        row
        for row in rows
        if row["speech"].size < round(RATE * SECONDS)
        and (folders is None or row["key"].split("/")[0] in folders)
    ]
    keys = frequent((row["key"] for row in whole), len(voices))
    if not keys:
        raise ValueError(f"no prompt of the folders {folders} is whole in all voices")
    if held_out is not None:
        turn = {key: SPLITS[1 + i % 2] for i, key in enumerate(keys)}
        for row in whole:
            other = row["voice"] != held_out
            row["split"] = "train" if other else turn.get(row["key"])
    kept = [row for row in whole if row["split"] == split and row["key"] in set(keys)]
    return sorted(kept, key=lambda row: (row["voice"], row["key"])), voices, keys


def tuxpaint_arrays(
    split: str,
    data_dir: str | os.PathLike | None = None,
    size: int = 16,
    *,
    speech_languages: Sequence[str] = ("fr", "ro", "ru", "bg", "ca", "es", "be", "el"),
    min_items: int = 20,
) -> dict[str, Any]:
    """Returns stamps with category, captions in many languages, and a spoken caption.

    Args:
        split: ``train``, ``validation`` or ``test``.
        data_dir: the folder of datasets; None takes :func:`meta_opt.data.data_dir`.
        size: side of the images in pixels.
        speech_languages: languages of the spoken caption, in order of preference.
        min_items: smallest number of stamps of a category, over all splits.

    Returns:
        ``image`` uint8 [B, size, size, 3]; ``label`` int32 [B]; ``class_names``, the K
        categories, the same for every split; ``caption``, B English texts;
        ``translations``, for each stamp a tuple of (text, language), English first;
        ``mel`` float32 [B, 32, 24], zeros where nothing is spoken; ``speech_language``,
        B codes, empty there; ``key``, B paths.

    Raises:
        MissingDataError: if the dataset has not been prepared; it names the command.
        ValueError: if there is no such split.
    """
    check_split(split)
    parts = {s: sorted_rows("tuxpaint", s, data_dir, "key") for s in SPLITS}
    names = frequent(
        (r["category"] for part in parts.values() for r in part), min_items
    )
    rows = [row for row in parts[split] if row["category"] in names]
    images = [fit_square(decode(row["image"]), size) for row in rows]
    spoken = [spoken_caption(row, speech_languages) for row in rows]
    return {
        "image": np.stack(images) if rows else np.zeros((0, size, size, 3), np.uint8),
        "label": label_column(rows, "category", names),
        "class_names": names,
        "caption": [row["caption"] for row in rows],
        "translations": [
            (
                (row["caption"], "en"),
                *zip(row["captions"], row["caption_languages"], strict=True),
            )
            for row in rows
        ],
        "mel": spectrograms([speech for _, speech in spoken]),
        "speech_language": [language for language, _ in spoken],
        "key": [row["key"] for row in rows],
    }


def animated_emoji_arrays(
    split: str,
    data_dir: str | os.PathLike | None = None,
    size: int = 16,
    *,
    min_items: int = 20,
) -> dict[str, Any]:
    """Returns clips of eight frames with name, category and sentiment.

    Args:
        split: ``train``, ``validation`` or ``test``.
        data_dir: the folder of datasets; None takes :func:`meta_opt.data.data_dir`.
        size: side of the frames in pixels; 32 is the stored size.
        min_items: smallest number of clips of a category, over all splits.

    Returns:
        ``video`` uint8 [B, 8, size, size, 3]; ``label`` int32 [B]; ``class_names``, the
        K categories in lower case, the same for every split; ``name``, B texts;
        ``sentiment`` float32 [B] in [-1, 1], NaN where it is not known; ``codepoint``,
        B texts.

    Raises:
        MissingDataError: if the dataset has not been prepared; it names the command.
        ValueError: if there is no such split.
    """
    check_split(split)
    parts = {s: sorted_rows("animated_emoji", s, data_dir, "codepoint") for s in SPLITS}
    for part in parts.values():
        for row in part:
            row["category"] = CATEGORIES[row["category"]].lower()
    names = frequent(
        (r["category"] for part in parts.values() for r in part), min_items
    )
    rows = [row for row in parts[split] if row["category"] in names]
    videos = np.asarray([row["video"] for row in rows], np.uint8)
    frames = [_fitted(frame, size) for video in videos for frame in video]
    return {
        "video": np.asarray(frames, np.uint8).reshape(len(rows), -1, size, size, 3)
        if rows
        else np.zeros((0, 8, size, size, 3), np.uint8),
        "label": label_column(rows, "category", names),
        "class_names": names,
        "name": [row["name"] for row in rows],
        "sentiment": np.asarray([row["sentiment"] for row in rows], np.float32),
        "codepoint": [row["codepoint"] for row in rows],
    }


def frequent(values: Iterable[str], at_least: int) -> tuple[str, ...]:
    """Returns the values that occur at least ``at_least`` times, sorted.

    >>> frequent(["b", "a", "c", "b", "a"], 2)
    ('a', 'b')
    """
    counts = collections.Counter(values)
    return tuple(sorted(v for v, count in counts.items() if count >= at_least))


def spectrograms(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Returns float32 [B, 32, 24] of B clips int16 [T]; silence gives zeros."""
    if not clips:
        return np.zeros((0, 32, 24), np.float32)
    return np.stack([log_mel(clip) for clip in clips])


def _fitted(frame: np.ndarray, size: int) -> np.ndarray:
    return fit_square(Image.fromarray(frame), size)


def spoken_caption(
    row: dict[str, Any], languages: Sequence[str]
) -> tuple[str, np.ndarray]:
    """The spoken caption in the first available language, and that language."""
    ends = np.cumsum(row["speech_lengths"])[:-1]
    clips = np.split(row["speech"], ends.astype(np.int64))
    found = dict(zip(row["speech_languages"], clips, strict=False))
    language = next((code for code in languages if code in found), "")
    return language, found.get(language, np.zeros(0, np.int16))


def label_column(
    rows: Sequence[dict[str, Any]], column: str, names: Sequence[str]
) -> np.ndarray:
    """Indices of a column's values in ``names``, int32 [B]."""
    index = {name: i for i, name in enumerate(names)}
    return np.asarray([index[row[column]] for row in rows], np.int32)


def sorted_rows(
    name: str, split: str, data_dir: str | os.PathLike | None, key: str
) -> list[dict[str, Any]]:
    """Reads a split, sorted by keys, since the stored order is shuffled."""
    return sorted(read_records(name, split, data_dir), key=lambda row: row[key])
