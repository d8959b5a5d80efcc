"""Captions of segments of YouCook2 (Zhou et al., AAAI 2018).

1,333 videos for training with 10,337 segments and 457 for validation with 3,492; the
captions of the test split were never published, and papers report on validation.

``youcookii_annotations_trainval.json``: an object whose ``database`` has an object for
each video id, with ``subset`` (``training`` or ``validation``) and ``annotations``, a
list of segments: ``id`` (a number, unique within the video), ``segment`` (start and
end in seconds) and ``sentence``. Its ``duration``, ``recipe_type`` and ``video_url``
are not read.
"""

import math
from pathlib import Path

from meta_opt.data.sources.video_annotations.annotation_files import (
    Entry,
    find_file,
    read_object,
)
from meta_opt.data.sources.video_annotations.sample import VideoTextSample

SPLITS = ("train", "validation")
_NAMES = ("youcookii_annotations_trainval.json",)
_SUBSETS = {"training": "train", "validation": "validation"}
_FORM = (
    '{"database": {VIDEO: {"subset": "training" or "validation", "annotations": '
    '[{"id": 0, "segment": [START, END], "sentence": TEXT}, ...]}, ...}}'
)


def read_youcook2(path: Path, split: str) -> list[VideoTextSample]:
    """Samples of a split, one for each segment, with keys ``VIDEO_SEGMENT``.

    A clip named by the key is the segment alone; one named by the video id is the whole
    video, from which the segment is cut.

    Args:
        path: the JSON file, or its folder.
        split: ``train`` or ``validation``.

    Raises:
        ValueError: if the file is not of the form that the module describes.
        FileNotFoundError: if it is missing.
    """
    file = path if path.is_file() else find_file(path, _NAMES)
    samples = [
        _sample(name, segment, video.choice("subset", _SUBSETS))
        for name, video in read_object(file, _FORM).members("database")
        for segment in video.entries("annotations")
    ]
    return [sample for sample in samples if sample.split == split]


def _sample(name: str, segment: Entry, split: str) -> VideoTextSample:
    named = Entry(segment.where, segment.form, {"video id": name})
    video = named.identifier("video id")
    start, end = _times(segment)
    key = f"{video}_{segment.integer('id')}"
    return VideoTextSample(
        video,
        key,
        split,
        (segment.text("sentence", blank=True),),
        start_seconds=start,
        end_seconds=end,
        clip_names=(key, video),
    )


def _times(segment: Entry) -> tuple[float, float]:
    times = segment.value("segment")
    if not isinstance(times, list) or len(times) != 2:
        raise segment.error(f"'segment' must be two numbers, not {times!r:.60}")
    numbers = Entry(
        segment.where,
        segment.form,
        dict(zip(("segment start", "segment end"), times, strict=True)),
    )
    start = numbers.number("segment start", 0, math.inf)
    end = numbers.number("segment end", 0, math.inf)
    if end <= start:
        raise segment.error(f"the segment ends at {end:g} s, not after {start:g} s")
    return start, end
