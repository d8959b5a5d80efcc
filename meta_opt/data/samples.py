"""Samples of several modalities, and what a task asks of them.

What a sample lacks is marked, never made up: a stamp that nobody speaks has no audio, a
image with an empty title no text.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from meta_opt.data.preprocessing.audio import RATE
from meta_opt.data.preprocessing.whisper_mel import whisper_mel

KINDS = ("classify", "score", "retrieve", "caption")
"""What a task asks for: a class, a number, the other half of a pair, a text."""
MODALITIES = ("image", "text", "audio", "video")

_QUIET = 32
"""Largest sample, of 32,767, of a clip that counts as silence."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """One split of a task: B samples.

    Attributes:
        image: uint8 [B, h, w, 3], if the task has images.
        text: B texts, if the task has texts; "" where there is none.
        audio: B clips int16 [T], if the task has sound; length 0 where there is none.
        video: uint8 [B, T, h, w, 3], if the task has clips.
        label: int32 [B], of ``class_names``; of a task without classes empty.
        score: float32 [B]; of a task without scores empty.
        caption: B texts that are to be found or written; else empty.
        absent: by modality bool [B], the images or clips that are not there.
        class_names: K of them.
        rate: samples per second of the audio.
        skipped: how many more could not be read.
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
    absent: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    rate: int = RATE
    skipped: int = 0

    def __len__(self) -> int:
        return len(next(x for x in self.inputs().values()))

    def inputs(self) -> dict[str, Any]:
        """The modalities that there are, by name."""
        every = {m: getattr(self, m) for m in MODALITIES}
        return {m: x for m, x in every.items() if x is not None}

    def at_most(self, count: int) -> "Samples":
        """At most ``count`` samples, drawn with a fixed seed, in order; 0 for all."""
        if not count or len(self) <= count:
            return self
        order = np.random.default_rng(0).permutation(len(self))
        kept = np.sort(order[:count])

        def rows(x: Any) -> Any:
            if isinstance(x, np.ndarray):
                return x[kept] if len(x) else x
            return [x[i] for i in kept] if x else x

        by_sample = (*MODALITIES, "label", "score", "caption")
        return dataclasses.replace(
            self,
            **{name: rows(getattr(self, name)) for name in by_sample},
            absent={m: x[kept] for m, x in self.absent.items()},
        )

    def present(self) -> dict[str, np.ndarray]:
        """By modality bool [B]: whether a sample has it. Silence is not speech."""
        found = {m: np.ones(len(self), bool) for m in self.inputs()}
        if self.text is not None:
            found["text"] = np.asarray([bool(text.strip()) for text in self.text])
        if self.audio is not None:
            loudest = [np.abs(c.astype(np.int32)).max(initial=0) for c in self.audio]
            found["audio"] = np.asarray(loudest) > _QUIET
        return found | {m: ~x for m, x in self.absent.items()}


@dataclasses.dataclass(frozen=True)
class MultimodalTask:
    """A task: what its samples have, and what is asked of them.

    Attributes:
        kind: one of `KINDS`.
        modalities: that its samples have.
        dataset: that must be prepared, or the file.
        read: ``(split, data_dir, side) -> Samples``, images of that many pixels.
    """

    kind: str
    modalities: tuple[str, ...]
    dataset: str
    read: Callable[[str, str | os.PathLike | None, int], Samples]


def spectrograms(
    clips: Sequence[np.ndarray], seconds: float, rate: int = RATE
) -> np.ndarray:
    """Whisper's spectrograms of clips, float32 [B, 100 * seconds, 80]."""
    return np.stack([whisper_mel(clip, rate, seconds) for clip in clips])
