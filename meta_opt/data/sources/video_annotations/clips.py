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
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from meta_opt.data.preprocessing.images import (
    count_frames,
    decode,
    decode_frames,
    fit_square,
)
from meta_opt.data.sources.video_annotations.sample import VideoTextSample

_log = logging.getLogger(__name__)

NAMED = 5
"""Largest number of ids in a message."""

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ANIMATIONS = (".gif", ".webp", ".apng")
_VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".flv", ".m4v")
_UNDECODABLE = (OSError, ValueError)
"""Exceptions for files that are damaged or too large."""
MAX_DAMAGED = 100
"""Largest number of clips with undecodable frames; with more, something else is wrong.
"""
_BETWEEN = 1e-6
"""Tolerance, as a share of a frame, within which a time belongs to a frame."""


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
class Clips:
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


def find_clips(
    media: str | os.PathLike,
    samples: Sequence[VideoTextSample],
    frames_per_second: float | None = None,
) -> Clips:
    """Locates the clips of samples; reads only the headers of feature files.

    Args:
        media: the media folder.
        samples: one or more samples.
        frames_per_second: frame rate of whole videos that segments are cut out of.

    Returns:
        The clips that were found.

    Raises:
        ValueError: if ``media`` is not a folder, no sample has a clip, no clip has a
            frame, there are clips of several forms, feature files are not floats
            [T, D] with one D, or segments are to be cut from whole videos and
            ``frames_per_second`` is not given.

    >>> import tempfile
    >>> media = Path(tempfile.mkdtemp())
    >>> np.save(media / "video0.npy", np.ones((5, 3), np.float16))
    >>> sample = VideoTextSample("video0", "video0", "train", ("a car",))
    >>> clips = find_clips(media, [sample])
    >>> features, mask = clips.features(sample, 2)
    >>> features.shape, features.dtype.name, mask.tolist()
    ((2, 3), 'float32', [True, True])
    """
    folder = Path(media)
    _check_folder(folder)
    if frames_per_second is not None and not 0 < frames_per_second < math.inf:
        raise ValueError(f"frames_per_second={frames_per_second} is not above 0")
    wanted = {sample.clip_names: sample for sample in samples}
    found: dict[tuple[str, ...], Clip] = {}
    first: dict[str, Clip] = {}
    for names in wanted:
        for clip in (clip for name in names for clip in _clips_named(folder, name)):
            found.setdefault(names, clip)
            first.setdefault(clip.form, clip)
    if not found:
        raise ValueError(_none_there(folder, wanted))
    if len(first) > 1:
        several = " and ".join(f"{c.form} ({c.path})" for c in first.values())
        raise ValueError(f"{folder} has clips of several forms: {several}; keep one")
    (form,) = first
    clips = Clips(form, found, frames_per_second)
    if form == "features":
        _check_features(clip.path for clip in found.values())
    _check_segments(clips, wanted.values())
    _check_not_empty(folder, clips)
    return clips


def ffmpeg_command(media: Path, names: Sequence[str]) -> str | None:
    """The FFmpeg command that extracts the frames of a clip stored as a video file.

    Args:
        media: the folder of clips.
        names: possible names of the clip.

    Returns:
        A command for two frames per second, or None if there is no video file.
    """
    for name in names:
        for ending in _VIDEOS:
            path = os.path.join(media, name) + ending
            if os.path.isfile(path):
                return _ffmpeg(path, os.path.join(media, name))
    return None


def frame_files(folder: Path) -> list[Path]:
    """Images of a folder, sorted by the numbers in their names.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("10.jpg", "9.jpg", "._9.jpg", "notes.txt"):
    ...     (folder / name).touch()
    >>> [path.name for path in frame_files(folder)]
    ['9.jpg', '10.jpg']
    """
    names = [n for n in os.listdir(folder) if _is_picture(n)]
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


def even_indices(total: int, count: int) -> list[int]:
    """Indices ``i total // count``, or all of fewer than ``count``.

    >>> even_indices(10, 4), even_indices(2, 4)
    ([0, 2, 5, 7], [0, 1])
    """
    if total < count:
        return list(range(max(total, 0)))
    return [i * total // count for i in range(count)]


def segment_frames(
    start_seconds: float, end_seconds: float, frames_per_second: float, total: int
) -> tuple[int, int]:
    """Index of the first frame of a segment, and of the first frame after it.

    Frame i is shown from ``i / frames_per_second`` on. A segment between two frames has
    the earlier one.

    Args:
        start_seconds: start of the segment.
        end_seconds: end of the segment.
        frames_per_second: frame rate of the clip.
        total: number of frames of the clip.

    >>> segment_frames(1.0, 3.0, 2.0, 100), segment_frames(1.1, 1.2, 1.0, 100)
    ((2, 6), (1, 2))
    >>> segment_frames(40.0, 60.0, 2.0, 100), segment_frames(60.0, 70.0, 2.0, 100)
    ((80, 100), (100, 100))
    """
    # Clip times first, since huge or infinite ones do not fit into an integer.
    first, last = (
        math.ceil(min(seconds * frames_per_second, total) - _BETWEEN)
        for seconds in (start_seconds, end_seconds)
    )
    if first == last and start_seconds * frames_per_second < total:
        first = max(first - 1, 0)
        last = first + 1
    return min(first, total), min(last, total)


def _clips_named(folder: Path, name: str) -> Iterator[Clip]:
    path = os.path.join(folder, name)
    if os.path.isdir(path):
        yield Clip(name, Path(path), "frames")
    if os.path.isfile(f"{path}.npy"):
        yield Clip(name, Path(f"{path}.npy"), "features")
    for ending in ANIMATIONS:
        if os.path.isfile(path + ending):
            yield Clip(name, Path(path + ending), "animation")


def _ffmpeg(video: str, frames: str) -> str:
    frames, video = shlex.quote(frames), shlex.quote(video)
    return f"mkdir -p {frames} && ffmpeg -i {video} -vf fps=2 {frames}/%06d.jpg"


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if not folder.exists():
        raise ValueError(f"there is no folder {folder} of clips")
    suffix = folder.suffix.lower()
    if suffix in (".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"):
        raise ValueError(
            f"{folder} is one file for all clips, which needs unpickling or holds them "
            "all in memory, and unpickling runs what is in a file. Where you trust it, "
            "write a file for each clip once: for name, x in features.items(): "
            "np.save(f'FOLDER/{name}.npy', x), with x of floats [T, D], and give FOLDER"
        )
    if suffix in _VIDEOS:
        command = _ffmpeg(str(folder), str(folder.with_suffix("")))
        raise ValueError(
            f"{folder} is a video, which is not decoded; write its frames ({command}) "
            f"and give {folder.parent}"
        )
    raise ValueError(f"{folder} is a file, not a folder of clips")


def _none_there(folder: Path, wanted: Mapping[tuple[str, ...], VideoTextSample]) -> str:
    for names in wanted:
        if command := ffmpeg_command(folder, names):
            return (
                f"{folder} has video files, which are not decoded; write their frames: "
                f"{command}"
            )
    ids = list(dict.fromkeys(sample.video_id for sample in wanted.values()))
    tried = " or ".join(repr(name) for name in next(iter(wanted)))
    return (
        f"{folder} has no clip of {len(ids)} videos ({', '.join(ids[:NAMED])}"
        f"{', ...' if len(ids) > NAMED else ''}): for NAME {tried}, neither a folder "
        f"NAME of frames nor NAME.npy, {', '.join(f'NAME{e}' for e in ANIMATIONS)}"
    )


def _check_features(paths: Iterable[Path]) -> None:
    first: tuple[Path, int] | None = None
    for path in paths:
        width = load_features(path).shape[1]
        first = first or (path, width)
        if width != first[1]:
            raise ValueError(
                f"{path} has {width} features per frame, but {first[0]} has {first[1]}"
            )


def _check_segments(clips: Clips, samples: Iterable[VideoTextSample]) -> None:
    for sample in samples:
        clip = clips.found.get(sample.clip_names)
        if clip is None or sample.start_seconds is None or clip.name != sample.video_id:
            continue
        if clip.form == "animation":
            raise ValueError(
                f"{clip.path} is a whole video, of which segments are to be cut out; "
                "write its frames or features"
            )
        if clips.frames_per_second is None:
            raise ValueError(
                f"{clip.path} is a whole video, of which segments are to be cut out: "
                "give `frames_per_second`, with which its frames were taken"
            )


def _check_not_empty(folder: Path, clips: Clips) -> None:
    """Raises ValueError if no clip has frames; warns of empty clips."""
    if clips.form == "animation":
        return
    empty = [c.name for c in clips.found.values() if not _has_frames(c)]
    if len(empty) == len(clips.found):
        raise ValueError(f"none of {len(empty)} clips in {folder} has a frame")
    if empty:
        _log.warning(
            "%d of %d clips in %s have no frame and are masked: %s%s",
            *(len(empty), len(clips.found), folder, ", ".join(empty[:NAMED])),
            ", ..." if len(empty) > NAMED else "",
        )


def _has_frames(clip: Clip) -> bool:
    if clip.form == "features":
        return len(load_features(clip.path)) > 0
    with os.scandir(clip.path) as files:
        return any(_is_picture(file.name) for file in files)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(_PICTURES) and not name.startswith(".")


def _by_number(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name)
    return [(int(p), "") if i % 2 else (-1, p) for i, p in enumerate(parts)]


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name}={number} is not at least 1")
