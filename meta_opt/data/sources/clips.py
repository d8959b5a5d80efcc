"""Clips with texts, their sources, and held-out splits."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from meta_opt.data.preprocessing.frame_indices import even_indices
from meta_opt.data.sources.clip_questions import Questions, ask_questions
from meta_opt.data.sources.media_arrays import animated_emoji_arrays
from meta_opt.data.splits import held_out_split
from meta_opt.types import check_name


class AskedQuestion(NamedTuple):
    """An annotated question about a clip.

    Attributes:
        kind: name of the kind, by which accuracy is reported.
        question: text of the question.
        answer: text of the answer; "" if there are options.
        options: answers to choose from; all questions of a set have equally many.
        choice: index of the right option, -1 if there are none.
    """

    kind: str
    question: str
    answer: str
    options: tuple[str, ...] = ()
    choice: int = -1


@dataclasses.dataclass(frozen=True)
class Clips:
    """One split of B clips.

    Attributes:
        video: B arrays [T, ...] of any T, uint8 frames [T, h, w, 3] or float features
            [T, D]; possibly a lazy sequence.
        name: B texts that describe the clips.
        category: B names of classes.
        sentiment: float32 [B] on the scale of the source, NaN if unknown.
        key: B unique keys of the clips.
        captions: for each clip, all texts that describe it; by default the name only.
        group: B names of groups, which are held out together; by default the key.
        asked: for each clip, its annotated questions; by default none.
    """

    video: Sequence[np.ndarray]
    name: Sequence[str]
    category: Sequence[str]
    sentiment: np.ndarray
    key: Sequence[str]
    captions: Sequence[tuple[str, ...]] = ()
    group: Sequence[str] = ()
    asked: Sequence[tuple[AskedQuestion, ...]] = ()

    def __post_init__(self) -> None:
        """Fills in the defaults."""
        defaults: dict[str, Sequence[Any]] = {
            "captions": [(name,) for name in self.name],
            "group": self.key,
            "asked": [()] * len(self.key),
        }
        for field, values in defaults.items():
            if not getattr(self, field):
                object.__setattr__(self, field, values)

    def __len__(self) -> int:
        return len(self.key)

    def at(self, rows: Sequence[int] | np.ndarray) -> "Clips":
        """The clips with these indices; no video is read."""
        rows = np.asarray(rows, int)
        return Clips(
            _Chosen(self.video, rows),
            [self.name[i] for i in rows],
            [self.category[i] for i in rows],
            self.sentiment[rows],
            [self.key[i] for i in rows],
            [self.captions[i] for i in rows],
            [self.group[i] for i in rows],
            [self.asked[i] for i in rows],
        )

    def at_most(self, count: int) -> "Clips":
        """A subset of ``count`` clips with a fixed seed, in order; 0 for all."""
        if not count or len(self) <= count:
            return self
        order = np.random.default_rng(0).permutation(len(self))
        return self.at(np.sort(order[:count]))

    def with_sentiment(self) -> "Clips":
        """The clips with known sentiment."""
        return self.at(np.flatnonzero(np.isfinite(self.sentiment)))


class _Chosen(Sequence[np.ndarray]):
    """A subset of a sequence, with items read on access."""

    def __init__(self, items: Sequence[np.ndarray], rows: np.ndarray) -> None:
        self._items, self._rows = items, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._items[int(self._rows[index])]


class ClipSource(Protocol):
    """A set of clips with the splits ``train``, ``validation`` and ``test``."""

    def read(self, split: str) -> Clips:
        """Reads the clips of a split.

        Raises:
            ValueError: if there is no such split, or it has no clips.
        """

    def questions(
        self, clips: Clips, frames: np.ndarray, present: np.ndarray
    ) -> Questions:
        """Questions about clips.

        Args:
            clips: B clips of a split.
            frames: [B, T, ...], frames of the clips, see `fit_frames`.
            present: bool [B, T].

        Raises:
            ValueError: if there are no questions.
        """

    def describe(self) -> Mapping[str, Any]:
        """JSON values that describe the data and what was skipped, for a run's log."""


def _animated_emoji(split: str, data_dir: str | os.PathLike | None, side: int) -> Clips:
    found = animated_emoji_arrays(split, data_dir, side)
    return Clips(
        list(found["video"]),
        found["name"],
        [found["class_names"][n] for n in found["label"]],
        found["sentiment"],
        found["codepoint"],
    )


CLIPS: dict[str, Callable[[str, str | os.PathLike | None, int], Clips]] = {
    "animated_emoji": _animated_emoji
}
"""Functions that read a set of clips, by name: ``(split, data_dir, side) -> Clips``."""


def read_clips(
    source: str, split: str, data_dir: str | os.PathLike | None, side: int
) -> Clips:
    """Reads a split.

    Args:
        source: one of `CLIPS`.
        split: ``train``, ``validation`` or ``test``.
        data_dir: the folder of datasets; None takes :func:`meta_opt.data.data_dir`.
        side: side of the frames in pixels.

    Raises:
        ValueError: no such set or split, no clip, or a clip without frames.
        MissingDataError: if the dataset has not been prepared; it names the command.
    """
    check_name("clips", source, CLIPS)
    clips = CLIPS[source](split, data_dir, side)
    empty = [clips.key[i] for i, video in enumerate(clips.video) if not len(video)]
    if empty or not len(clips):
        raise ValueError(
            f"{source}, {split}: the clip {empty[0]!r} has no frames"
            if empty
            else f"{source} has no clips in {split}"
        )
    return clips


@dataclasses.dataclass(frozen=True)
class PreparedClips:
    """A `ClipSource` over one of `CLIPS`, with generated questions.

    Attributes:
        name: name of the set of clips.
        data_dir: the folder of datasets.
        image_size: side of the frames in pixels.
        choices: C, number of options of a question.
        seed: random seed of the assignment of questions to clips.
    """

    name: str
    data_dir: str | os.PathLike | None
    image_size: int
    choices: int = 4
    seed: int = 0

    def read(self, split: str) -> Clips:
        """See `read_clips`."""
        return read_clips(self.name, split, self.data_dir, self.image_size)

    def questions(
        self, clips: Clips, frames: np.ndarray, present: np.ndarray
    ) -> Questions:
        """See `ask_questions`."""
        return ask_questions(
            clips.key,
            clips.name,
            clips.category,
            frames,
            present,
            choices=self.choices,
            seed=self.seed,
        )

    def describe(self) -> Mapping[str, Any]:
        """Empty, since all clips of the set are read."""
        return {}


def hold_out(clips: Clips, share: float) -> tuple[Clips, Clips]:
    """Splits training clips into training and meta-validation clips.

    The hash of a clip's group decides.

    Args:
        clips: clips of the training split.
        share: share of meta-validation clips, 0 to 1.

    Raises:
        ValueError: if either part is empty.
    """
    shares = {"validation": share}
    held = np.asarray([held_out_split(g, shares) == "validation" for g in clips.group])
    if held.all() or not held.any():
        what = "training" if held.all() else "meta-validation"
        raise ValueError(
            f"a meta-validation share of {share} of {len(clips)} training clips leaves "
            f"no clip for {what}"
        )
    return clips.at(np.flatnonzero(~held)), clips.at(np.flatnonzero(held))


def fit_frames(video: Sequence[np.ndarray], frames: int) -> tuple[np.ndarray, ...]:
    """Brings clips to the same length, by even subsampling or padding with zeros.

    Args:
        video: B arrays [any, ...], such as uint8 [any, h, w, 3], of one dtype.
        frames: T.

    Returns:
        [B, T, ...], and bool [B, T], false for padding.

    >>> clips = [np.ones((n, 1, 1, 3), np.uint8) for n in (1, 4)]
    >>> fit_frames(clips, 2)[1].tolist()
    [[True, False], [True, True]]
    """
    fitted = np.zeros(0)
    present = np.zeros((len(video), frames), bool)
    for i, clip in enumerate(video):
        if not i:
            fitted = np.zeros((len(video), frames, *clip.shape[1:]), clip.dtype)
        rows = even_indices(len(clip), frames)
        fitted[i, : len(rows)] = clip[rows]
        present[i, : len(rows)] = True
    return fitted, present
