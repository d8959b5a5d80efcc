"""Clips of video-text data sets: folders of frames, frame features, animations.

Below the media folder, the clip ``NAME`` is one of

- a folder ``NAME`` of images, one for each frame, in the order of the numbers in
  their names (``000001.jpg``, ...);
- ``NAME.npy``, features of the frames: floats [T, D], memory-mapped;
- ``NAME.gif``, ``NAME.webp`` or ``NAME.apng``, an animation.

All clips must be of one of these forms. Video files such as MP4 are not decoded; the
error names the FFmpeg command that writes their frames.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from meta_opt.data.preprocessing.frame_indices import even_indices, segment_frames
from meta_opt.data.preprocessing.images import (
    count_frames,
    decode,
    decode_frames,
    fit_square,
)
from meta_opt.data.sources.video_annotations.sample import VideoTextSample

_log = logging.getLogger(__name__)

NAMED = 5
"""Largest number of clips that a record names."""

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ANIMATIONS = (".gif", ".webp", ".apng")
_UNDECODABLE = (OSError, ValueError)
"""Exceptions for files that are damaged or too large."""
MAX_DAMAGED = 100
"""Largest number of clips with undecodable frames; with more, something else is wrong.
"""


class Clip(NamedTuple):
    """A clip on disk.

    Attributes:
        name: path below the media folder, without extension.
        path: path of the file or of the folder of frames.
        form: ``frames``, ``features`` or ``animation``.
    """

    name: str
    path: Path
    form: str


@dataclasses.dataclass(frozen=True)
class ClipFiles:
    """The clips of samples, which are read on access.

    Attributes:
        form: ``frames``, ``features`` or ``animation``.
        found: the clip for each sample's ``clip_names``.
        frames_per_second: frame rate of clips that are whole videos.
        short: by sample key, number of frames or feature rows of clips that had fewer
            than were requested so far.
        damaged: by path, the first error of clips with frames that could not be decoded
            and were skipped.
    """

    form: str
    found: Mapping[tuple[str, ...], Clip]
    frames_per_second: float | None = None
    short: dict[str, int] = dataclasses.field(default_factory=dict)
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)

    def frames(
        self, sample: VideoTextSample, count: int, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Evenly spaced frames of a sample's clip or segment.

        Of N frames those with the indices ``i N // count`` are taken; of fewer than
        ``count`` all, padded with zeros. Frames that cannot be decoded are skipped.

        Args:
            sample: a sample whose clip was found.
            count: T, number of frames.
            size: side in pixels of the square that frames are resized to.

        Returns:
            The frames, uint8 [T, size, size, 3], padded with white to squares, and a
            mask, bool [T], of the frames that exist.

        Raises:
            ValueError: if the clips are features, or more than `MAX_DAMAGED` clips have
                frames that cannot be decoded (the message names the file).
        """
        _check_positive(count=count, size=size)
        clip = self._clip(sample)
        if clip.form == "features":
            raise ValueError(f"{clip.path} has features; read them with `features`")
        frames = np.zeros((count, size, size, 3), np.uint8)
        there, problem = 0, ""
        for image in self._images(clip, sample, count):
            if isinstance(image, Exception):
                problem = problem or f"{clip.path} cannot be decoded: {image}"
                continue
            frames[there] = fit_square(image, size)
            there += 1
        if problem:
            self._note_damage(clip, problem)
        return frames, self._mask(sample, there, count)

    def features(
        self, sample: VideoTextSample, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Evenly spaced features of a sample's clip or segment.

        Args:
            sample: one whose clip was found.
            count: T, number of rows, chosen and padded as in :meth:`frames`.

        Returns:
            The features, float32 [T, D], and a mask, bool [T], of the rows that exist.

        Raises:
            ValueError: if the clips have no features, or a value is not finite in
                float32 (the message names the file).
        """
        _check_positive(count=count)
        clip = self._clip(sample)
        if clip.form != "features":
            raise ValueError(f"{clip.path} has no features; read it with `frames`")
        rows = load_features(clip.path)
        indices = self._indices(clip, sample, len(rows), count)
        features = np.zeros((count, rows.shape[1]), np.float32)
        with np.errstate(over="ignore"):
            features[: len(indices)] = rows[indices]
        if not np.isfinite(features).all():
            raise ValueError(f"{clip.path} has values that are not finite in float32")
        return features, self._mask(sample, len(indices), count)

    def _note_damage(self, clip: Clip, problem: str) -> None:
        if not self.damaged:
            _log.warning(
                "%s; the frame is left out, as are those of other clips in `damaged`",
                problem,
            )
        self.damaged[str(clip.path)] = problem
        if len(self.damaged) > MAX_DAMAGED:
            raise ValueError(
                f"{problem}; more than {MAX_DAMAGED} clips have frames that cannot be "
                "decoded: check the media folder"
            )

    def _clip(self, sample: VideoTextSample) -> Clip:
        if sample.clip_names not in self.found:
            raise ValueError(f"sample {sample.key!r} has no clip")
        return self.found[sample.clip_names]

    def _images(
        self, clip: Clip, sample: VideoTextSample, count: int
    ) -> Iterator[Image.Image | Exception]:
        """Yields frames, and exceptions in place of frames that cannot be decoded."""
        if clip.form == "frames":
            files = frame_files(clip.path)
            for i in self._indices(clip, sample, len(files), count):
                try:
                    yield decode(files[i].read_bytes())
                except _UNDECODABLE as error:
                    yield ValueError(f"{files[i].name}: {error}")
            return
        try:
            data = clip.path.read_bytes()
            yield from decode_frames(data, min(count, count_frames(data)))
        except _UNDECODABLE as error:
            yield error  # Later frames of the file cannot be located.

    def _indices(
        self, clip: Clip, sample: VideoTextSample, total: int, count: int
    ) -> list[int]:
        start, end = 0, total
        if sample.start_seconds is not None and clip.name == sample.video_id:
            assert sample.end_seconds is not None and self.frames_per_second is not None
            start, end = segment_frames(
                sample.start_seconds, sample.end_seconds, self.frames_per_second, total
            )
        return [start + i for i in even_indices(end - start, count)]

    def _mask(self, sample: VideoTextSample, there: int, count: int) -> np.ndarray:
        if there < count:
            if not self.short:
                _log.warning(
                    "sample %r has %d frames, fewer than %d: it is padded and masked, "
                    "as are others that `short` counts",
                    *(sample.key, there, count),
                )
            self.short[sample.key] = there
        return np.arange(count) < there


def frame_files(folder: Path) -> list[Path]:
    """Images of a folder, sorted by the numbers in their names.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("10.jpg", "9.jpg", "._9.jpg", "notes.txt"):
    ...     (folder / name).touch()
    >>> [path.name for path in frame_files(folder)]
    ['9.jpg', '10.jpg']
    """
    names = [n for n in os.listdir(folder) if is_frame(n)]
    return [folder / name for name in sorted(names, key=_by_number)]


def load_features(path: Path) -> np.ndarray:
    """The memory-mapped array of a ``.npy`` file, floats [T, D].

    Raises:
        ValueError: if the file is not such an array; the message names it.
    """
    try:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            if "empty" not in str(error):
                raise
            # Arrays without rows cannot be memory-mapped.
            array = np.load(path, allow_pickle=False)
    except Exception as error:
        # NumPy parses headers as Python source, which raises errors of many types.
        reason = str(error) or type(error).__name__
        if "pickle" in reason or "Python objects" in reason:
            reason = "it holds Python objects, and unpickling runs what is in a file"
        raise ValueError(
            f"{path}: {reason}; expected a .npy file of floats [T, D]"
        ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path}: an archive; expected a .npy file of floats [T, D]")
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] == 0:
        raise ValueError(
            f"{path}: {array.dtype} {list(array.shape)}; expected floats [T, D]"
        )
    return array


def is_frame(name: str) -> bool:
    """Whether a file name is that of an image, and not hidden."""
    return name.lower().endswith(_PICTURES) and not name.startswith(".")


def _by_number(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name)
    return [(int(p), "") if i % 2 else (-1, p) for i, p in enumerate(parts)]


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name}={number} is not at least 1")
