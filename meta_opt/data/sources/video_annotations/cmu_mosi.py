"""Sentiment of spoken segments: CMU-MOSI (Zadeh et al., 2016).

2,199 segments of 93 videos, with a sentiment score in [-3, 3]; the standard folds have
1,284, 229 and 686 segments of 52, 10 and 31 videos. Features and labels are published
as pickles and ``.csd`` files (HDF5), which are not read: unpickling a file runs what
its author put in it.

The labels are read from ``MOSI-label.csv`` (or ``label.csv``) of the MMSA release (Yu
et al.): columns ``video_id``, ``clip_id``, ``text``, ``label`` and ``mode`` (``train``,
``valid`` or ``test``). Its ``annotation`` (``Negative``, ``Neutral`` or ``Positive``)
follows from the label and is not read, and neither are labels of single modalities.
Releases differ in the order of the columns, which does not matter; that all of them
write ``valid`` for validation is not certain, and another name is an error.
"""

from pathlib import Path

from meta_opt.data.sources.video_annotations.annotation_files import (
    find_file,
    read_table,
)
from meta_opt.data.sources.video_annotations.sample import VideoTextSample

SPLITS = ("train", "validation", "test")
_NAMES = ("MOSI-label.csv", "label.csv")
_COLUMNS = ("video_id", "clip_id", "text", "label", "mode")
_MODES = {"train": "train", "valid": "validation", "test": "test"}
_STRONGEST = 3.0


def read_cmu_mosi(path: Path, split: str) -> list[VideoTextSample]:
    """Samples of a split, one for each segment, with keys ``VIDEO_CLIP``.

    The splits are by video: segments of a speaker are in one split.

    Args:
        path: the CSV file, or its folder.
        split: ``train``, ``validation`` or ``test``.

    Raises:
        ValueError: if the file is not of the form that the module describes, or a
            video has segments in two splits.
        FileNotFoundError: if it is missing.
    """
    file = path if path.is_file() else find_file(path, _NAMES)
    splits: dict[str, str] = {}
    samples = []
    for row in read_table(file, _COLUMNS, ","):
        video, clip = row.identifier("video_id"), row.identifier("clip_id")
        mode = row.choice("mode", _MODES)
        if splits.setdefault(video, mode) != mode:
            raise row.error(
                f"video {video!r} is in {splits[video]} and in {mode}, but splits are "
                "by video"
            )
        key = f"{video}_{clip}"
        samples.append(
            VideoTextSample(
                video,
                key,
                mode,
                (row.text("text"),),
                score=row.number("label", -_STRONGEST, _STRONGEST),
                clip_names=(key, f"{video}/{clip}"),
            )
        )
    return [sample for sample in samples if sample.split == split]
