"""Finds the clips of annotated samples in a folder."""

import logging
import math
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from meta_opt.data.sources.video_annotations.clips import (
    ANIMATIONS,
    Clip,
    ClipFiles,
    is_frame,
    load_features,
)
from meta_opt.data.sources.video_annotations.sample import VideoTextSample
from meta_opt.error_messages import first_few

_log = logging.getLogger(__name__)

_VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".flv", ".m4v")


def find_clips(
    media: str | os.PathLike,
    samples: Sequence[VideoTextSample],
    frames_per_second: float | None = None,
) -> ClipFiles:
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

    >>> import tempfile, numpy as np
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
    clips = ClipFiles(form, found, frames_per_second)
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
        f"{folder} has no clip of {len(ids)} videos ({first_few(ids)}): "
        f"for NAME {tried}, neither a folder "
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


def _check_segments(clips: ClipFiles, samples: Iterable[VideoTextSample]) -> None:
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


def _check_not_empty(folder: Path, clips: ClipFiles) -> None:
    """Raises ValueError if no clip has frames; warns of empty clips."""
    if clips.form == "animation":
        return
    empty = [c.name for c in clips.found.values() if not _has_frames(c)]
    if len(empty) == len(clips.found):
        raise ValueError(f"none of {len(empty)} clips in {folder} has a frame")
    if empty:
        _log.warning(
            "%d of %d clips in %s have no frame and are masked: %s",
            *(len(empty), len(clips.found), folder, first_few(empty)),
        )


def _has_frames(clip: Clip) -> bool:
    if clip.form == "features":
        return len(load_features(clip.path)) > 0
    with os.scandir(clip.path) as files:
        return any(is_frame(file.name) for file in files)
