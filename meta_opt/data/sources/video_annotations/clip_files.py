"""Reads single clips without annotations."""

import os
from pathlib import Path

import numpy as np

from meta_opt.data.sources.video_annotations.clips import (
    ANIMATIONS,
    Clip,
    ClipFiles,
)
from meta_opt.data.sources.video_annotations.find_clips import ffmpeg_command
from meta_opt.data.sources.video_annotations.sample import VideoTextSample


def read_clip(path: str | os.PathLike, frames: int, size: int) -> np.ndarray:
    """Reads evenly spaced frames or features of a clip.

    Args:
        path: a folder with one image per frame; a ``.npy`` file of features; or an
            animation (GIF, WebP or APNG).
        frames: T, largest number of frames.
        size: side in pixels of the square that images are resized to.

    Returns:
        uint8 [t, size, size, 3], or float32 [t, D] of features; t is at most T.

    Raises:
        ValueError: a missing file, one of an unsupported format, one that cannot be
            decoded, or a clip without frames; the message names it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "clip.npy"
    >>> np.save(path, np.ones((5, 3), np.float16))
    >>> read_clip(path, frames=2, size=8).shape
    (2, 3)
    """
    path = Path(path)
    form = _form_of(path)
    sample = VideoTextSample(str(path), str(path), "test")
    clips = ClipFiles(form, {sample.clip_names: Clip(str(path), path, form)})
    if form == "features":
        found, present = clips.features(sample, frames)
    else:
        found, present = clips.frames(sample, frames, size)
    if not present.any():
        raise ValueError(f"the clip {path} has no frames")
    return found[present]


def _form_of(path: Path) -> str:
    if path.is_dir():
        return "frames"
    if not path.is_file():
        raise ValueError(f"there is no clip {path}")
    if path.suffix.lower() == ".npy":
        return "features"
    if path.suffix.lower() in ANIMATIONS:
        return "animation"
    if command := ffmpeg_command(path.parent, [path.stem]):
        raise ValueError(
            f"{path} is a video, which is not decoded; write its frames ({command}) "
            "and give their folder"
        )
    raise ValueError(
        f"{path} is not a clip; give a folder of frames, a .npy file of features or an "
        f"animation ({', '.join(ANIMATIONS)})"
    )
