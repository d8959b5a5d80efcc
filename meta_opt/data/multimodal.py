"""The benchmark suite's real data: samples of several modalities, with fixed splits.

What a sample lacks is marked, never made up: a stamp that nobody speaks has no audio, a
picture with an empty title no text.
"""

import collections
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from meta_opt.data.audio import RATE
from meta_opt.data.cldr import cldr_arrays
from meta_opt.data.emoji_artists import CATEGORIES
from meta_opt.data.images import decode, fit_square
from meta_opt.data.media_arrays import (
    asterisk_rows,
    frequent,
    label_column,
    sorted_rows,
    spoken_caption,
)
from meta_opt.data.records import SPLITS, check_split
from meta_opt.data.tfds_sources import tfds_source
from meta_opt.data.whisper_mel import whisper_mel
from meta_opt.types import check_name

KINDS = ("classify", "score", "retrieve", "caption")
"""What a task asks for: a class, a number, the other half of a pair, a text."""

_SPEECH = ("fr", "ro", "ru", "bg", "ca", "es", "be", "el")
_QUIET = 32
"""Largest sample, of 32,767, of a clip that counts as silence."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """One split of a task: B samples.

    Attributes:
        image: uint8 [B, h, w, 3], if the task has pictures.
        text: B texts, likewise; "" where there is none.
        audio: B clips int16 [T] at 8 kHz, likewise; of length 0 where there is none.
        video: uint8 [B, T, h, w, 3], likewise.
        label: int32 [B], of ``class_names``; of a task without classes empty.
        score: float32 [B]; of a task without scores empty.
        caption: B texts that are to be found or written; else empty.
        class_names: K of them.
    """

    image: np.ndarray | None = None
    text: Sequence[str] | None = None
    audio: Sequence[np.ndarray] | None = None
    video: np.ndarray | None = None
    label: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    score: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.float32)
    )
    caption: Sequence[str] = ()
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(x for x in self.inputs().values()))

    def inputs(self) -> dict[str, Any]:
        """The modalities that there are, by name."""
        every = {m: getattr(self, m) for m in ("image", "text", "audio", "video")}
        return {m: x for m, x in every.items() if x is not None}

    def at_most(self, count: int) -> "Samples":
        """So many of them, drawn with a fixed seed and in order; 0 for all."""
        if not count or len(self) <= count:
            return self
        order = np.random.default_rng(0).permutation(len(self))
        kept = np.sort(order[:count])

        def rows(x: Any) -> Any:
            if isinstance(x, np.ndarray):
                return x[kept] if len(x) else x
            return [x[i] for i in kept] if x else x

        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        names = fields.pop("class_names")
        return Samples(**{k: rows(v) for k, v in fields.items()}, class_names=names)

    def present(self) -> dict[str, np.ndarray]:
        """By modality bool [B]: whether a sample has it. Silence is no speech."""
        found = {m: np.ones(len(self), bool) for m in self.inputs()}
        if self.text is not None:
            found["text"] = np.asarray([bool(text.strip()) for text in self.text])
        if self.audio is not None:
            loudest = [np.abs(c.astype(np.int32)).max(initial=0) for c in self.audio]
            found["audio"] = np.asarray(loudest) > _QUIET
        return found


@dataclasses.dataclass(frozen=True)
class SuiteTask:
    """A task of the suite.

    Attributes:
        kind: one of `KINDS`.
        modalities: that its samples have.
        dataset: that must be prepared.
        read: ``(split, data_dir, side) -> Samples``, pictures of that many pixels.
    """

    kind: str
    modalities: tuple[str, ...]
    dataset: str
    read: Callable[[str, str | os.PathLike | None, int], Samples]


def read_task(
    name: str, split: str, data_dir: str | os.PathLike | None = None, side: int = 64
) -> Samples:
    """Reads a split of a task.

    Args:
        name: one of `TASKS`.
        split: ``train``, ``validation`` or ``test``.
        data_dir: the folder of datasets; None takes :func:`meta_opt.data.data_dir`.
        side: of pictures and frames in pixels.

    Raises:
        ValueError: no such task or split, or a class without a sample to train on.
        MissingDataError: if the dataset has not been prepared; it names the command.
    """
    check_name("task", name, TASKS)
    check_split(split)
    found = TASKS[name].read(split, data_dir, side)
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


def spectrograms(clips: Sequence[np.ndarray], seconds: float) -> np.ndarray:
    """Whisper's spectrograms of clips at 8 kHz, float32 [B, 100 * seconds, 80]."""
    return np.stack([whisper_mel(clip, RATE, seconds) for clip in clips])


def _tuxpaint(*modalities: str) -> SuiteTask:
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

    return SuiteTask("classify", modalities, "tuxpaint", read)


def _openclipart(kind: str) -> SuiteTask:
    def read(split: str, data_dir: str | os.PathLike | None, side: int) -> Samples:
        # The split of the retrieval set: titles that say something.
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
    return SuiteTask(kind, modalities, "openclipart", read)


def _asterisk(held_out: str) -> SuiteTask:
    def read(split: str, data_dir: str | os.PathLike | None, side: int) -> Samples:
        folders = ("digits", "letters", "phonetic")
        rows, _, keys = asterisk_rows(split, data_dir, held_out, folders)
        return Samples(
            audio=[row["speech"] for row in rows],
            label=label_column(rows, "key", keys),
            class_names=keys,
        )

    return SuiteTask("classify", ("audio",), "asterisk", read)


def _animated_emoji(kind: str) -> SuiteTask:
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

    return SuiteTask(kind, ("video", "text"), "animated_emoji", read)


def _emoji(kind: str) -> SuiteTask:
    """One artist's emoji with their names: their category, or the one by the other."""

    def read(split: str, data_dir: str | os.PathLike | None, side: int) -> Samples:
        source = tfds_source(
            "emoji", split, data_dir, artists=("google",), image_size=side
        )
        image = source.images()
        names = [captions[0] for captions in source.captions]
        if kind == "classify":
            # Some categories are in the name: of every other emoji it is kept back.
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
    return SuiteTask(kind, modalities, "emoji", read)


def _klettres(asked: str, at_least: int) -> SuiteTask:
    """Spoken letters and syllables: which, or in which language?"""

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

    return SuiteTask("classify", ("audio",), "klettres", read)


def _cldr() -> SuiteTask:
    """Names of languages and countries: in which language?"""

    def read(split: str, data_dir: str | os.PathLike | None, side: int) -> Samples:
        texts, labels, names = cldr_arrays(split)
        return Samples(text=texts, label=labels, class_names=names)

    return SuiteTask("classify", ("text",), "cldr", read)


SUITE: dict[str, SuiteTask] = {
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

FOR_META_TRAINING: dict[str, SuiteTask] = {
    "emoji_pictures": _emoji("classify"),
    "emoji_pairs": _emoji("retrieve"),
    "emoji_names": _emoji("caption"),
    "klettres_language": _klettres("language", 30),
    # Many classes of few samples each.
    "klettres_text": _klettres("text", 3),
    "cldr_language": _cldr(),
}
"""Tasks of other data sets, of which none is in the benchmark."""

TASKS = {**SUITE, **FOR_META_TRAINING}
"""All of them."""
