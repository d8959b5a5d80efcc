"""Tasks of the benchmark suite on real data, with fixed splits."""

import collections
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from meta_opt.data.catalog.emoji_artists import CATEGORIES
from meta_opt.data.preprocessing.images import decode, fit_square
from meta_opt.data.records import SPLITS, check_split
from meta_opt.data.samples import MultimodalTask, Samples
from meta_opt.data.sources.jsonl_samples import is_path
from meta_opt.data.sources.media_arrays import (
    asterisk_rows,
    frequent,
    label_column,
    sorted_rows,
    spoken_caption,
)
from meta_opt.data.sources.sample_task import sample_task
from meta_opt.data.sources.tfds_sources import tfds_source
from meta_opt.types import check_name

_SPEECH = ("fr", "ro", "ru", "bg", "ca", "es", "be", "el")


def find_task(name: str, max_unreadable: int = 100) -> MultimodalTask:
    """Finds a task by its name, or by the path of a user's own samples.

    Args:
        name: one of `TASKS`, or a path for
            `meta_opt.data.sources.jsonl_samples.read_samples`.
        max_unreadable: largest number of unreadable files of the user's to skip.

    Raises:
        ValueError: no such task, or a file that does not define one; see
            `meta_opt.data.sources.sample_task.sample_task`.
    """
    if is_path(name):
        return sample_task(name, max_unreadable)
    check_name("task", name, TASKS)
    return TASKS[name]


def read_task(
    name: str, split: str, data_dir: str | os.PathLike | None = None, side: int = 64
) -> Samples:
    """Reads a split of a task.

    Args:
        name: see `find_task`.
        split: ``train``, ``validation`` or ``test``.
        data_dir: the folder of datasets; None takes :func:`meta_opt.data.data_dir`.
        side: side of images and frames in pixels.

    Raises:
        ValueError: no such task or split, or a class without training samples.
        MissingDataError: if the dataset has not been prepared; it names the command.
    """
    return read_split(find_task(name), name, split, data_dir, side)


def read_split(
    task: MultimodalTask,
    name: str,
    split: str,
    data_dir: str | os.PathLike | None,
    side: int,
) -> Samples:
    """As `read_task`, for a task object; ``name`` is its name in messages."""
    check_split(split)
    found = task.read(split, data_dir, side)
    if split == "train":
        counts = np.bincount(found.label, minlength=len(found.class_names))
        if absent := [
            n for n, c in zip(found.class_names, counts, strict=True) if not c
        ]:
            raise ValueError(
                f"{name}: nothing to train on in the class{'es' * (len(absent) > 1)} "
                f"{', '.join(absent)}"
            )
    return found


def _tuxpaint(*modalities: str) -> MultimodalTask:
    def read(split: str, data_dir: str | os.PathLike | None, side: int) -> Samples:
        parts = {s: sorted_rows("tuxpaint", s, data_dir, "key") for s in SPLITS}
        every = (r["category"] for part in parts.values() for r in part)
        names = frequent(every, 20)
        rows = [row for row in parts[split] if row["category"] in names]
        inputs: dict[str, Callable[[], Any]] = {
            "image": lambda: np.stack(
                [fit_square(decode(row["image"]), side) for row in rows]
            ),
            "audio": lambda: [spoken_caption(row, _SPEECH)[1] for row in rows],
            "text": lambda: [row["caption"] for row in rows],
        }
        return Samples(
            **{m: inputs[m]() for m in modalities},
            label=label_column(rows, "category", names),
            class_names=names,
        )

    return MultimodalTask("classify", modalities, "tuxpaint", read)


def _openclipart(kind: str) -> MultimodalTask:
    def read(split: str, data_dir: str | os.PathLike | None, side: int) -> Samples:
        # The images of the retrieval set, which have meaningful titles.
        source = tfds_source("openclipart", split, data_dir, image_size=side)
        titles = [captions[0] for captions in source.captions]
        if kind != "classify":
            kept = [i for i, title in enumerate(titles) if title.strip()]
            titles = [titles[i] for i in kept]
            images = source.images(np.asarray(kept))
            inputs: dict[str, Any] = {"image": images} | (
                {"text": titles} if kind == "retrieve" else {}
            )
            return Samples(**inputs, caption=titles)
        parts = (tfds_source("openclipart", s, data_dir).labels for s in SPLITS)
        counts = collections.Counter(int(n) for labels in parts for n in labels)
        kept_labels = sorted(n for n, count in counts.items() if count >= 20)
        place = {n: i for i, n in enumerate(kept_labels)}
        rows = [i for i, n in enumerate(source.labels) if int(n) in place]
        return Samples(
            image=source.images(np.asarray(rows)),
            text=[titles[i] for i in rows],
            label=np.asarray([place[int(source.labels[i])] for i in rows], np.int32),
            class_names=tuple(source.class_names[n] for n in kept_labels),
        )

    modalities = ("image",) if kind == "caption" else ("image", "text")
    return MultimodalTask(kind, modalities, "openclipart", read)


def _asterisk(held_out: str) -> MultimodalTask:
    def read(split: str, data_dir: str | os.PathLike | None, side: int) -> Samples:
        folders = ("digits", "letters", "phonetic")
        rows, _, keys = asterisk_rows(split, data_dir, held_out, folders)
        return Samples(
            audio=[row["speech"] for row in rows],
            label=label_column(rows, "key", keys),
            class_names=keys,
        )

    return MultimodalTask("classify", ("audio",), "asterisk", read)


def _animated_emoji(kind: str) -> MultimodalTask:
    def read(split: str, data_dir: str | os.PathLike | None, side: int) -> Samples:
        parts = {
            s: sorted_rows("animated_emoji", s, data_dir, "codepoint") for s in SPLITS
        }
        every = (CATEGORIES[r["category"]] for part in parts.values() for r in part)
        names = frequent(every, 20)
        rows = [
            {**row, "category": CATEGORIES[row["category"]]}
            for row in parts[split]
            if (
                np.isfinite(row["sentiment"])
                if kind == "score"
                else CATEGORIES[row["category"]] in names
            )
        ]
        frames = [
            [fit_square(Image.fromarray(frame), side) for frame in row["video"]]
            for row in rows
        ]
        shared: dict[str, Any] = {
            "video": np.asarray(frames, np.uint8),
            "text": [row["name"] for row in rows],
        }
        if kind == "score":
            scores = np.asarray([row["sentiment"] for row in rows], np.float32)
            return Samples(**shared, score=scores)
        labels = label_column(rows, "category", names)
        lower = tuple(name.lower() for name in names)
        return Samples(**shared, label=labels, class_names=lower)

    return MultimodalTask(kind, ("video", "text"), "animated_emoji", read)


def _emoji(kind: str) -> MultimodalTask:
    """One artist's emoji with their names: classification, captioning or retrieval."""

    def read(split: str, data_dir: str | os.PathLike | None, side: int) -> Samples:
        source = tfds_source(
            "emoji", split, data_dir, artists=("google",), image_size=side
        )
        image = source.images()
        names = [captions[0] for captions in source.captions]
        if kind == "classify":
            # Some names contain the category, so the name of every other emoji is
            # hidden.
            texts = ["" if i % 2 else name for i, name in enumerate(names)]
            return Samples(
                image=image,
                text=texts,
                label=source.labels,
                class_names=source.class_names,
            )
        pair: dict[str, Any] = {"image": image} | (
            {"text": names} if kind == "retrieve" else {}
        )
        return Samples(**pair, caption=names)

    modalities = ("image",) if kind == "caption" else ("image", "text")
    return MultimodalTask(kind, modalities, "emoji", read)


def _klettres(asked: str, at_least: int) -> MultimodalTask:
    """Spoken letters and syllables, labelled by text or by language."""

    def read(split: str, data_dir: str | os.PathLike | None, side: int) -> Samples:
        parts = {
            s: sorted_rows("klettres", s, data_dir, "path") for s in {"train", split}
        }
        names = frequent((row[asked] for row in parts["train"]), at_least)
        rows = [row for row in parts[split] if row[asked] in names]
        return Samples(
            audio=[row["speech"] for row in rows],
            label=label_column(rows, asked, names),
            class_names=names,
        )

    return MultimodalTask("classify", ("audio",), "klettres", read)


SUITE: dict[str, MultimodalTask] = {
    "tuxpaint_speech": _tuxpaint("image", "audio"),
    "tuxpaint_trimodal": _tuxpaint("image", "audio", "text"),
    "clipart_category": _openclipart("classify"),
    "clipart_retrieval": _openclipart("retrieve"),
    "clipart_captions": _openclipart("caption"),
    "asterisk_commands": _asterisk("it_IT_m_Carlo"),
    "emoji_category": _animated_emoji("classify"),
    "emoji_sentiment": _animated_emoji("score"),
}
"""The benchmark's tasks by name."""

FOR_META_TRAINING: dict[str, MultimodalTask] = {
    "emoji_pictures": _emoji("classify"),
    "emoji_pairs": _emoji("retrieve"),
    "emoji_names": _emoji("caption"),
    "klettres_language": _klettres("language", 30),
    # Many classes with few samples each.
    "klettres_text": _klettres("text", 3),
}
"""Tasks on data sets that are not part of the benchmark."""

TASKS = {**SUITE, **FOR_META_TRAINING}
"""All tasks by name."""
