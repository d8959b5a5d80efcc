"""Writes samples to files that `meta_opt.fit` and other tools read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from meta_opt.data.samples import Samples
from meta_opt.text_files import write_jsonl

FILE = "samples.jsonl"
_FRAME_MS = 100


def write_samples(parts: Mapping[str, Samples], folder: str | os.PathLike) -> Path:
    """Writes a JSONL file and its images, clips and audio files, losslessly.

    Args:
        parts: samples by split.
        folder: created if needed. The JSONL file is written last.

    Returns:
        The path of the JSONL file, for
        `meta_opt.data.sources.jsonl_samples.read_samples`. Each sample has the key
        ``split``, and the keys that it has values for.

    Raises:
        ImportError: if there is audio and ``soundfile`` is not installed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> picture = np.zeros((1, 8, 8, 3), np.uint8)
        >>> label = np.zeros(1, np.int32)
        >>> part = Samples(image=picture, label=label, class_names=("dark",))
        >>> file = write_samples({"train": part}, tempfile.mkdtemp())
        >>> print(file.read_text(encoding="utf-8"), end="")
        {"image": "train/00000.png", "label": "dark", "split": "train"}
    """
    folder = Path(folder)
    rows = []
    for split, samples in parts.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        present = samples.present()
        for i in range(len(samples)):
            row = {
                modality: _write(modality, samples, i, folder, f"{split}/{i:05d}")
                for modality, there in present.items()
                if there[i]
            }
            rows.append(row | _asked(samples, i) | {"split": split})
    file = folder / FILE
    write_jsonl(file, rows)
    return file


def _write(modality: str, samples: Samples, i: int, folder: Path, stem: str) -> str:
    """Writes one file and returns its relative path; returns texts as they are."""
    value = samples.inputs()[modality][i]
    if modality == "text":
        return value
    if modality == "audio":
        import soundfile

        name = f"{stem}.wav"
        soundfile.write(folder / name, value, samples.rate, subtype="PCM_16")
    elif modality == "video":
        name = f"{stem}.webp"
        first, *others = map(Image.fromarray, value)
        first.save(
            folder / name,
            save_all=True,
            append_images=others,
            duration=_FRAME_MS,
            loop=0,
            lossless=True,
        )
    else:
        name = f"{stem}.png"
        Image.fromarray(value).save(folder / name)
    return name


def _asked(samples: Samples, i: int) -> dict[str, Any]:
    """The target of a sample; empty for image-text retrieval."""
    if len(samples.label):
        return {"label": samples.class_names[samples.label[i]]}
    if len(samples.score):
        return {"score": float(samples.score[i])}
    if samples.caption and samples.text is None:
        return {"target": samples.caption[i]}
    return {}
