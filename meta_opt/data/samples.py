"""Multimodal samples and tasks.

Missing modalities are marked, never imputed: a stamp without a spoken caption has no
audio, an image with an empty title no text.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from meta_opt.data.preprocessing.audio import RATE
from meta_opt.data.preprocessing.whisper_mel import whisper_mel

KINDS = ("classify", "score", "retrieve", "caption")
"""Kinds of tasks: predict a class, a number, the other half of a pair, or a text."""
MODALITIES = ("image", "text", "audio", "video")

_QUIET = 32
"""Largest amplitude, of 32,767, of a clip that counts as silence."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """One split of a task: B samples.

    Attributes:
        image: uint8 [B, h, w, 3], if the task has images.
        text: B texts, if the task has texts; "" if missing.
        audio: B clips int16 [T], if the task has audio; length 0 if missing.
        video: uint8 [B, T, h, w, 3], if the task has clips.
        label: int32 [B], indices into ``class_names``; empty without classes.
        score: float32 [B], regression targets; empty without scores.
        caption: B target texts of retrieval or generation; else empty.
        absent: bool [B] by modality, true for missing images or clips.
        class_names: names of the K classes.
        rate: sampling rate of the audio in Hz.
        skipped: number of unreadable samples that were skipped.
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
        """The available modalities by name."""
        every = {m: getattr(self, m) for m in MODALITIES}
        return {m: x for m, x in every.items() if x is not None}

    def at_most(self, count: int) -> "Samples":
        """A subset of ``count`` samples with a fixed seed, in order; 0 for all."""
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
        """Bool [B] by modality: whether a sample has it. Silence counts as missing."""
        found = {m: np.ones(len(self), bool) for m in self.inputs()}
        if self.text is not None:
            found["text"] = np.asarray([bool(text.strip()) for text in self.text])
        if self.audio is not None:
            loudest = [np.abs(c.astype(np.int32)).max(initial=0) for c in self.audio]
            found["audio"] = np.asarray(loudest) > _QUIET
        return found | {m: ~x for m, x in self.absent.items()}


@dataclasses.dataclass(frozen=True)
class MultimodalTask:
    """A task: the modalities of its samples, and the kind of target.

    Attributes:
        kind: one of `KINDS`.
        modalities: modalities of its samples.
        dataset: name of the required dataset, or path of the file.
        read: ``(split, data_dir, side) -> Samples``, with images of ``side`` pixels.
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
