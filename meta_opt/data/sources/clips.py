"""Clips with names, for tasks on video and text, and which of them are held out."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np

from meta_opt.data.sources.media_arrays import animated_emoji_arrays
from meta_opt.data.splits import held_out_split
from meta_opt.types import check_name


@dataclasses.dataclass(frozen=True)
class Clips:
    """One split: B clips.

    Attributes:
        video: B arrays uint8 [T, h, w, 3], of any T.
        name: B texts that say what is seen.
        category: B of them, the names of classes.
        sentiment: float32 [B] in [-1, 1], NaN where it is not known.
        key: B texts that the clips are known by, of no two the same.
    """

    video: Sequence[np.ndarray]
    name: Sequence[str]
    category: Sequence[str]
    sentiment: np.ndarray
    key: Sequence[str]

    def __len__(self) -> int:
        return len(self.key)

    def at(self, rows: Sequence[int] | np.ndarray) -> "Clips":
        """The clips of these rows."""
        return Clips(
            [self.video[i] for i in rows],
            [self.name[i] for i in rows],
            [self.category[i] for i in rows],
            self.sentiment[np.asarray(rows, int)],
            [self.key[i] for i in rows],
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


def hold_out(clips: Clips, share: float) -> tuple[Clips, Clips]:
    """Divides training clips into those to train on and meta-validation ones.

    A hash of its key decides over a clip.

    Args:
        clips: of the training split.
        share: of meta-validation, 0 to 1.

    Raises:
        ValueError: if either has no clip.
    """
    shares = {"validation": share}
    held = np.asarray([held_out_split(k, shares) == "validation" for k in clips.key])
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
        video: B arrays uint8 [any, h, w, 3], each with a frame.
        frames: T.

    Returns:
        uint8 [B, T, h, w, 3], and bool [B, T], false where a clip is filled up.

    >>> clips = [np.ones((n, 1, 1, 3), np.uint8) for n in (1, 4)]
    >>> fit_frames(clips, 2)[1].tolist()
    [[True, False], [True, True]]
    """
    fitted = np.zeros((len(video), frames, *video[0].shape[1:]), np.uint8)
    present = np.zeros((len(video), frames), bool)
    for i, clip in enumerate(video):
        count = min(len(clip), frames)
        fitted[i, :count] = clip[np.arange(count) * len(clip) // count]
        present[i, :count] = True
    return fitted, present
