"""Clips with texts, where they come from, and which of them are held out."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from meta_opt.data.sources.clip_questions import Questions, ask_questions
from meta_opt.data.sources.media_arrays import animated_emoji_arrays
from meta_opt.data.splits import held_out_split
from meta_opt.types import check_name


class AskedQuestion(NamedTuple):
    """A question that an annotator asked of a clip.

    Attributes:
        kind: accuracy is reported by it.
        question: a text.
        answer: a text; "" if there are options.
        options: answers to choose from, of all questions of a set equally many.
        choice: the right one of them, -1 if there are none.
    """

    kind: str
    question: str
    answer: str
    options: tuple[str, ...] = ()
    choice: int = -1


@dataclasses.dataclass(frozen=True)
class Clips:
    """One split: B clips.

    Attributes:
        video: B arrays [T, ...] of any T, uint8 frames [T, h, w, 3] or float features
            [T, D]; it may read them when they are asked for.
        name: B texts that say what is seen.
        category: B of them, the names of classes.
        sentiment: float32 [B] on the scale of the source, NaN where it is not known.
        key: B texts that the clips are known by, of no two the same.
        captions: B times all texts that say what is seen; by default the name alone.
        group: B texts; clips of one group are held out together. By default the key.
        asked: B times the questions that the clips come with; by default none.
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
        """Fills in what is left out."""
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
        """The clips of these rows; no video is read."""
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
        """So many of them, drawn with a fixed seed and in order; 0 for all."""
        if not count or len(self) <= count:
            return self
        order = np.random.default_rng(0).permutation(len(self))
        return self.at(np.sort(order[:count]))

    def with_sentiment(self) -> "Clips":
        """Those whose sentiment is known."""
        return self.at(np.flatnonzero(np.isfinite(self.sentiment)))


class _Chosen(Sequence[np.ndarray]):
    """Some items of a sequence, each got when it is asked for."""

    def __init__(self, items: Sequence[np.ndarray], rows: np.ndarray) -> None:
        self._items, self._rows = items, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._items[int(self._rows[index])]


class ClipSource(Protocol):
    """A set of clips with the splits ``train``, ``validation`` and ``test``."""

    def read(self, split: str) -> Clips:
        """The clips of a split.

        Raises:
            ValueError: no such split, or one without a clip.
        """

    def questions(
        self, clips: Clips, frames: np.ndarray, present: np.ndarray
    ) -> Questions:
        """Questions about clips.

        Args:
            clips: B of a split.
            frames: [B, T, ...], theirs, see `fit_frames`.
            present: bool [B, T].

        Raises:
            ValueError: if there is nothing to ask.
        """

    def describe(self) -> Mapping[str, Any]:
        """JSON values on what was read and what was left out, for a run's log."""


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
"""Sets of clips by name: ``(split, data_dir, side) -> Clips``."""


def read_clips(
    source: str, split: str, data_dir: str | os.PathLike | None, side: int
) -> Clips:
    """Reads a split.

    Args:
        source: one of `CLIPS`.
        split: ``train``, ``validation`` or ``test``.
        data_dir: the folder of datasets; None takes :func:`meta_opt.data.data_dir`.
        side: of the frames in pixels.

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
    """A `ClipSource`: one of `CLIPS`, with questions made from names and frames.

    Attributes:
        name: of the set.
        data_dir: the folder of datasets.
        image_size: of the frames in pixels.
        choices: C, names to choose from.
        seed: of which clip gets which question.
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
        """Nothing: all clips of the set are read."""
        return {}


def hold_out(clips: Clips, share: float) -> tuple[Clips, Clips]:
    """Divides training clips into those to train on and meta-validation ones.

    A hash of its group decides over a clip.

    Args:
        clips: of the training split.
        share: of meta-validation, 0 to 1.

    Raises:
        ValueError: if either has no clip.
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
    """Clips of one length: longer ones at even distances, shorter ones filled up.

    Args:
        video: B arrays [any, ...], such as uint8 [any, h, w, 3], of one dtype.
        frames: T.

    Returns:
        [B, T, ...], and bool [B, T], false where a clip is filled up with zeros.

    >>> clips = [np.ones((n, 1, 1, 3), np.uint8) for n in (1, 4)]
    >>> fit_frames(clips, 2)[1].tolist()
    [[True, False], [True, True]]
    """
    fitted = np.zeros(0)
    present = np.zeros((len(video), frames), bool)
    for i, clip in enumerate(video):
        if not i:
            fitted = np.zeros((len(video), frames, *clip.shape[1:]), clip.dtype)
        count = min(len(clip), frames)
        fitted[i, :count] = clip[np.arange(count) * len(clip) // max(count, 1)]
        present[i, :count] = True
    return fitted, present
