"""Captions of MSR-VTT (Xu et al., CVPR 2016): 10,000 clips with 20 captions each.

========== ====================================================================
kind       splits
========== ====================================================================
msrvtt     train 6,513, validation 497, test 2,990, as in the data set's JSON
msrvtt_7k  train 6,513, validation 497, and the 1k test set
msrvtt_9k  train 9,000, and the 1k test set
========== ====================================================================

The 1k test set (Yu et al., ECCV 2018, "JSFusion") pairs 1,000 clips with one caption
each, all of the official test split. Papers that report "7k" train on
``train+validation``, 7,010 clips; the 9,000 clips are all but those of the 1k test set.

Files, in one folder:

- ``MSRVTT_data.json``, or ``train_val_videodatainfo.json`` and
  ``test_videodatainfo.json``: an object with ``videos`` (``video_id``, ``split``:
  ``train``, ``validate`` or ``test``, ``category``: 0 to 19) and ``sentences``
  (``video_id``, ``caption``). Their ``start time`` and ``end time`` are of the YouTube
  video that the clip was cut from, and are not read.
- ``MSRVTT_train.9k.csv``: a column ``video_id``; others are not read.
- ``MSRVTT_JSFUSION_test.csv``: columns ``key``, ``vid_key``, ``video_id`` and
  ``sentence``, of which ``vid_key`` (``msr7020`` for ``video7020``) is not read.
"""

from pathlib import Path

from meta_opt.data.sources.video_annotations.annotation_files import (
    Entry,
    find_file,
    read_object,
    read_table,
)
from meta_opt.data.sources.video_annotations.sample import VideoTextSample

_WHOLE = "MSRVTT_data.json"
_PARTS = {
    "train": "train_val_videodatainfo.json",
    "validation": "train_val_videodatainfo.json",
    "test": "test_videodatainfo.json",
}
_TRAIN_9K = ("MSRVTT_train.9k.csv",)
_TEST_1K = ("MSRVTT_JSFUSION_test.csv",)
_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
_CATEGORIES = 20
_FORM = (
    '{"videos": [{"video_id": TEXT, "split": "train", "validate" or "test", '
    '"category": 0 to 19}, ...], "sentences": [{"video_id": TEXT, "caption": TEXT}, '
    "...]}"
)


def read_msrvtt(path: Path, split: str) -> list[VideoTextSample]:
    """Samples of an official split, one for each video, with all its captions.

    Args:
        path: the folder, or a JSON file.
        split: ``train``, ``validation`` or ``test``.

    Raises:
        ValueError: if a file is not of the form that the module describes.
        FileNotFoundError: if a file is missing.
    """
    samples = _read_videos(_json_file(path, split))
    return [sample for sample in samples if sample.split == split]


def read_msrvtt_7k(path: Path, split: str) -> list[VideoTextSample]:
    """Samples of the official train or validation split, or of the 1k test set.

    Args:
        path: the folder, or the JSON file in it.
        split: ``train``, ``validation`` or ``test``.

    Raises:
        ValueError: if a file is not of the form that the module describes.
        FileNotFoundError: if a file is missing.
    """
    if split == "test":
        return _read_test_1k(path)
    return read_msrvtt(path, split)


def read_msrvtt_9k(path: Path, split: str) -> list[VideoTextSample]:
    """Samples of the 9,000 videos for training, or of the 1k test set.

    Args:
        path: the folder, or a JSON file in it.
        split: ``train`` or ``test``.

    Raises:
        ValueError: if a file is not of the form that the module describes, or a video
            of the CSV file has no entry in the JSON files.
        FileNotFoundError: if a file is missing.
    """
    if split == "test":
        return _read_test_1k(path)
    table = find_file(path, _TRAIN_9K)
    rows = {}
    for row in read_table(table, ["video_id"], ","):
        if (video := row.identifier("video_id")) in rows:
            raise row.error(f"video {video!r} occurs twice")
        rows[video] = row
    # The 9,000 videos are of all three official splits.
    files = dict.fromkeys(_json_file(path, part) for part in _PARTS)
    videos = {s.video_id: s for file in files for s in _read_videos(file)}
    samples = []
    for video, row in rows.items():
        if video not in videos:
            names = " and ".join(file.name for file in files)
            raise row.error(f"video {video!r} is not in {names}")
        found = videos[video]
        samples.append(
            VideoTextSample(
                video, video, "train", found.captions, category=found.category
            )
        )
    return samples


def _json_file(path: Path, split: str) -> Path:
    if path.is_file() and path.suffix == ".json" and path.name not in _PARTS.values():
        return path
    return find_file(path, [_WHOLE, _PARTS[split]])


def _read_videos(path: Path) -> list[VideoTextSample]:
    whole = read_object(path, _FORM)
    about: dict[str, tuple[str, int]] = {}
    entries: dict[str, Entry] = {}
    for video in whole.entries("videos"):
        name = video.identifier("video_id")
        if name in about:
            raise video.error(f"video {name!r} occurs twice")
        category = video.integer("category", 0, _CATEGORIES - 1)
        about[name] = video.choice("split", _SPLITS), category
        entries[name] = video
    captions: dict[str, list[str]] = {name: [] for name in about}
    for sentence in whole.entries("sentences"):
        name = sentence.identifier("video_id")
        if name not in captions:
            raise sentence.error(f"video {name!r} is not among the `videos`")
        captions[name].append(sentence.text("caption", blank=True))
    for name, texts in captions.items():
        if not texts:
            raise entries[name].error(f"video {name!r} has no caption in `sentences`")
    return [
        VideoTextSample(name, name, split, tuple(captions[name]), category=category)
        for name, (split, category) in about.items()
    ]


def _read_test_1k(path: Path) -> list[VideoTextSample]:
    columns = ["key", "vid_key", "video_id", "sentence"]
    return [
        VideoTextSample(
            row.identifier("video_id"),
            row.text("key"),
            "test",
            (row.text("sentence", blank=True),),
        )
        for row in read_table(find_file(path, _TEST_1K), columns, ",")
    ]
