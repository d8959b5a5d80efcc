"""Data sets: JSON lines with media, annotations, features, few-shot folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.hostile_files import samples
from experiments.hostile_files.format import Files, Format, of_file


def _captions() -> Files:
    first = {"image": "a.png", "text": ["a cat", "cats"], "split": "train", "id": 1}
    return {
        "pairs.jsonl": samples.lines(first, {"image": "b/a.png", "text": "a dog"}),
        "a.png": samples.picture("PNG"),
        "b/a.png": samples.picture("PNG", "LA"),
    }


def read_pictures(path: Path) -> Any:
    """Reads samples and the images that they refer to."""
    from meta_opt.data.preprocessing.image_fit import ImageFit
    from meta_opt.data.preprocessing.pictures import Pictures, Unreadable
    from meta_opt.data.sources.image_text_rows import ImageTextRows

    return Pictures(ImageTextRows(path), ImageFit(16), Unreadable(0)).in_memory()


def _multimodal() -> Files:
    first = {"image": "a.png", "audio": "a.wav", "label": "cat", "split": "train"}
    second = {"video": "a.gif", "text": "b", "label": 1, "split": "train"}
    return {
        "samples.jsonl": samples.lines(first, second),
        "a.png": samples.picture("PNG"),
        "a.wav": samples.sound("WAV"),
        "a.gif": samples.animation("GIF", 9),
    }


def _samples(path: Path) -> Any:
    """Reads a task of several modalities with its media."""
    from meta_opt.data.sources.sample_task import sample_task

    return sample_task(path, 0).read("train", None, 8)


def _features(path: Path) -> Any:
    from meta_opt.data.sources.video_annotations.clips import load_features

    return np.array(load_features(path)[:4])


def _msrvtt() -> Files:
    videos = [
        {"video_id": f"video{i}", "split": split, "category": i % 20, "url": "x"}
        for i, split in ((0, "train"), (6513, "validate"))
    ]
    texts = [{"caption": "a car", "video_id": v["video_id"]} for v in videos]
    return {
        "train_val_videodatainfo.json": samples.dumped(
            {"videos": videos, "sentences": texts}
        ),
        "media/video0.gif": samples.animation("GIF"),
    }


def _read_msrvtt(folder: Path) -> Any:
    from meta_opt.data.sources.video_annotations import read_annotations

    found = read_annotations("msrvtt", folder, split="train", media=folder / "media")
    assert found.clips is not None
    return found.clips.frames(found[0], 3, 8)


def _few_shot() -> Files:
    about = {
        "classes": ["cat", "dog"],
        "settings": {"widths": [8, 16], "phases": 2, "prompt": "One of {categories}?"},
    }
    line = {"image": "a.png", "prompt": "?", "target": "cat", "label": "cat"}
    return {
        "dataset.json": samples.dumped(about),
        "8/phase_1.jsonl": samples.lines(line),
        "8/train.jsonl": samples.lines(line),
        "8/a.png": samples.picture("PNG"),
    }


def _read_few_shot(folder: Path) -> Any:
    from meta_opt.data.sources.few_shot.stored import open_few_shot

    found = open_few_shot(folder, 0)
    return found.prompt, found.digest(found.train(1)), found.classes


FORMATS: Mapping[str, Format] = {
    "captions_jsonl": Format(
        _captions,
        lambda folder: read_pictures(folder / "pairs.jsonl"),
        {"pairs.jsonl": "json_lines", "a.png": "png"},
    ),
    "multimodal_jsonl": Format(
        _multimodal,
        lambda folder: _samples(folder / "samples.jsonl"),
        {"samples.jsonl": "json_lines", "a.wav": "bytes", "a.gif": "bytes"},
    ),
    "npy_features": of_file(
        "a.npy",
        lambda: samples.npy(np.ones((5, 3), np.float32)),
        _features,
        "bytes",
    ),
    "msrvtt": Format(
        _msrvtt,
        _read_msrvtt,
        {"train_val_videodatainfo.json": "json", "media/video0.gif": "bytes"},
    ),
    "few_shot": Format(_few_shot, _read_few_shot, {"dataset.json": "json"}),
}
