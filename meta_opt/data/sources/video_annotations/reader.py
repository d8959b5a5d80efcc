"""Reads official annotation files of video-text data sets by name of the data set."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from meta_opt.data.sources.video_annotations import (
    cmu_mosi,
    msrvtt,
    tgif_qa,
    video_qa,
    youcook2,
)
from meta_opt.data.sources.video_annotations.clips import ClipFiles
from meta_opt.data.sources.video_annotations.find_clips import (
    ffmpeg_command,
    find_clips,
)
from meta_opt.data.sources.video_annotations.sample import VideoTextSample
from meta_opt.error_messages import first_few
from meta_opt.types import check_distinct, check_name, near_match

_log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """A data set whose annotation files can be read.

    Attributes:
        read: function that reads samples from a path and a split.
        splits: names of its splits.
    """

    read: Callable[[Path, str], list[VideoTextSample]]
    splits: Sequence[str]


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "msrvtt": Kind(msrvtt.read_msrvtt, ("train", "validation", "test")),
        "msrvtt_7k": Kind(msrvtt.read_msrvtt_7k, ("train", "validation", "test")),
        "msrvtt_9k": Kind(msrvtt.read_msrvtt_9k, ("train", "test")),
        "youcook2": Kind(youcook2.read_youcook2, youcook2.SPLITS),
        **{
            name: Kind(
                functools.partial(tgif_qa.read_tgif_qa, task=task), tgif_qa.SPLITS
            )
            for name, task in tgif_qa.TASKS.items()
        },
        **{
            name: Kind(
                functools.partial(video_qa.read_video_qa, prefix=prefix),
                video_qa.SPLITS,
            )
            for name, prefix in video_qa.PREFIXES.items()
        },
        "cmu_mosi": Kind(cmu_mosi.read_cmu_mosi, cmu_mosi.SPLITS),
    }
)
"""Data sets by name; the module of each describes its files."""


@dataclasses.dataclass(frozen=True)
class VideoTextData:
    """Samples of a video-text data set with their clips.

    Attributes:
        kind: a key of :data:`KINDS`.
        split: the split that was read.
        samples: samples with a clip, or all if no media folder was given.
        num_annotated: number of samples in the annotation files.
        missing: ids of videos (or segments, if clips are segments) without a clip, in
            the order of the files.
        clips: clips of the samples; None without a media folder.
    """

    kind: str
    split: str
    samples: tuple[VideoTextSample, ...]
    num_annotated: int
    missing: tuple[str, ...] = ()
    clips: ClipFiles | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> VideoTextSample:
        return self.samples[index]

    @property
    def short(self) -> Mapping[str, int]:
        """By sample key, the number of frames of clips shorter than requested."""
        return MappingProxyType({} if self.clips is None else self.clips.short)

    @property
    def damaged(self) -> Mapping[str, str]:
        """By path, the first error of clips with skipped frames."""
        return MappingProxyType({} if self.clips is None else self.clips.damaged)

    def describe(self) -> str:
        """A one-line summary of what was read and what is missing."""
        line = f"{self.kind} {self.split}: {len(self)} samples"
        return f"{line}; {_describe_missing(self)}" if self.missing else line

    def frames(
        self, sample: VideoTextSample, count: int, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Frames of a sample, uint8 [T, size, size, 3], and a mask, bool [T].

        See `meta_opt.data.sources.video_annotations.clips.ClipFiles.frames`.

        Raises:
            ValueError: if there is no media folder or it has features, or too many
                clips have frames that cannot be decoded.
        """
        return self._clips().frames(sample, count, size)

    def features(
        self, sample: VideoTextSample, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features of a sample, float32 [T, D], and a mask, bool [T].

        See `meta_opt.data.sources.video_annotations.clips.ClipFiles.features`.

        Raises:
            ValueError: if there is no media folder or it has no features, or a value
                is not finite.
        """
        return self._clips().features(sample, count)

    def _clips(self) -> ClipFiles:
        if self.clips is None:
            raise ValueError("the annotations were read without `media`")
        return self.clips


def read_annotations(
    kind: str,
    path: str | os.PathLike,
    *,
    split: str = "train",
    media: str | os.PathLike | None = None,
    frames_per_second: float | None = None,
) -> VideoTextData:
    """Reads the official annotation files of a video-text data set.

    Samples without a clip in ``media`` are skipped, with a warning that counts and
    names them. ClipFiles are read on access.

    Args:
        kind: a key of :data:`KINDS`.
        path: folder of the annotation files, or one of them.
        split: ``train``, ``validation`` or ``test``; several are joined by ``+``.
        media: folder of the clips, see `meta_opt.data.sources.video_annotations.clips`;
            None reads no clips.
        frames_per_second: sampling rate of frames or features; required if segments are
            cut out of whole videos.

    Returns:
        The samples in the order of the files.

    Raises:
        ValueError: if there is no such kind or split, a file does not have the official
            form (the message has file, line or entry, and the expected form), two
            samples have the same key, or ``media`` has no usable clips, see
            `meta_opt.data.sources.video_annotations.find_clips.find_clips`.
        FileNotFoundError: if an annotation file is missing; the message names it.

    >>> import json, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> question = {"question": "who runs?", "answer": "dog", "id": 5, "video_id": 12}
    >>> _ = (folder / "val_qa.json").write_text(json.dumps([question]))
    >>> data = read_annotations("msrvtt_qa", folder, split="validation")
    >>> data[0].video_id, data[0].question, data[0].answer
    ('video12', 'who runs?', 'dog')
    """
    check_name("kind", kind, KINDS)
    samples: list[VideoTextSample] = []
    for part in _parts(kind, split):
        samples += KINDS[kind].read(Path(path), part)
    if not samples:
        raise ValueError(f"{path} has no sample in the split {split!r} of {kind}")
    _check_unique(path, samples)
    if media is None:
        return VideoTextData(kind, split, tuple(samples), len(samples))
    clips = find_clips(media, samples, frames_per_second)
    lost = [sample for sample in samples if sample.clip_names not in clips.found]
    data = VideoTextData(
        kind,
        split,
        tuple(sample for sample in samples if sample.clip_names in clips.found),
        len(samples),
        tuple(dict.fromkeys(sample.clip_id for sample in lost)),
        clips,
    )
    if lost:
        names = dict.fromkeys(sample.clip_names for sample in lost)
        commands = [c for n in names if (c := ffmpeg_command(Path(media), n))]
        videos = (
            f"; {len(commands)} of them are there as video files, which are not "
            f"decoded; write their frames: {commands[0]}"
            if commands
            else ""
        )
        _log.warning("%s: %s%s", media, _describe_missing(data), videos)
    return data


def _parts(kind: str, split: str) -> list[str]:
    known = KINDS[kind].splits
    parts = split.split("+")
    for part in parts:
        if part not in known:
            raise ValueError(
                f"{kind} has no split {part!r}{near_match(part, known)} "
                f"(splits: {', '.join(known)})"
            )
    check_distinct("split", parts)
    return parts


def _check_unique(path: str | os.PathLike, samples: Sequence[VideoTextSample]) -> None:
    keys = set()
    for sample in samples:
        if sample.key in keys:
            raise ValueError(
                f"{path}: two samples have the key {sample.key!r}; expected one each"
            )
        keys.add(sample.key)


def _describe_missing(data: VideoTextData) -> str:
    lost = data.num_annotated - len(data)
    return (
        f"left out {lost} of {data.num_annotated} samples, since {len(data.missing)} "
        f"clips are missing: {first_few(data.missing)}"
    )
