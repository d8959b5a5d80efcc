"""Tasks on a user's own multimodal samples.

The target is the key that the samples have: ``label``, ``score`` or ``target``. With
none of these, the task is image-text retrieval.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from meta_opt.data.preprocessing.audio_files import read_clip
from meta_opt.data.preprocessing.images import decode, decode_frames, fit_square
from meta_opt.data.preprocessing.pictures import MAX_PIXELS, Unreadable
from meta_opt.data.preprocessing.whisper_mel import RATE
from meta_opt.data.samples import MODALITIES, MultimodalTask, Samples
from meta_opt.data.sources.jsonl_samples import read_samples
from meta_opt.data.sources.sample_schema import ASKED, MEDIA, Media, Sample
from meta_opt.data.splits import held_out_split

FRAMES = 8
"""Number of frames of a clip."""
_SECONDS = 30.0
"""Largest duration of audio in seconds, that of Whisper's input."""
_KINDS = {"label": "classify", "score": "score", "target": "caption"}


def sample_task(path: str | os.PathLike, max_unreadable: int = 100) -> MultimodalTask:
    """The task that a user's own samples define; media are read per split.

    Samples with an unreadable file are skipped and counted.

    Args:
        path: see `meta_opt.data.sources.jsonl_samples.read_samples`.
        max_unreadable: files that may be skipped, of all splits together.

    Raises:
        ValueError: see `read_samples`; or a sample with two targets, with another
            target than the first sample, or without one half of a pair (the message
            names it).
        FileNotFoundError: the file does not exist.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> file = Path(tempfile.mkdtemp()) / "samples.jsonl"
        >>> _ = file.write_text('{"text": "well done", "label": "praise"}')
        >>> task = sample_task(file)
        >>> task.kind, task.modalities
        ('classify', ('text',))
    """
    return task_of(read_samples(path), str(path), max_unreadable)


def task_of(
    samples: Sequence[Sample], name: str, max_unreadable: int = 100
) -> MultimodalTask:
    """The task that samples define; see `sample_task`.

    Args:
        samples: one or more samples.
        name: name of their source, for messages.
        max_unreadable: files that may be skipped, of all splits together.

    Raises:
        ValueError: see `sample_task`.
    """
    kind = _kind(samples[0])
    for sample in samples:
        if (other := _kind(sample)) != kind:
            raise ValueError(
                f"{sample.where}: asks to {other}, the first sample to {kind}"
            )
    modalities = tuple(m for m in MODALITIES if any(_has(s, m) for s in samples))
    labels = (sample.fields.label for sample in samples)
    names = tuple(sorted({label for label in labels if label is not None}))
    unreadable = Unreadable(max_unreadable)

    def read(split: str, data_dir: str | os.PathLike | None, side: int) -> Samples:
        del data_dir
        part = [sample for sample in samples if _split(sample) == split]
        loaded = load_samples(part, kind, modalities, names, side, unreadable, split)
        if not loaded.kept:
            raise ValueError(
                f"{name}: no sample is left for {split} (it has {len(part)}, of which "
                f"{len(part)} cannot be read); give samples a `split`"
            )
        return loaded.arrays

    return MultimodalTask(kind, modalities, name, read)


class LoadedSamples(NamedTuple):
    """Readable samples and their arrays.

    Attributes:
        kept: the B readable samples.
        arrays: arrays of these samples.
    """

    kept: list[Sample]
    arrays: Samples


def load_samples(
    samples: Sequence[Sample],
    kind: str | None,
    modalities: Sequence[str],
    class_names: tuple[str, ...],
    side: int,
    unreadable: Unreadable,
    name: str = "samples",
) -> LoadedSamples:
    """Reads the files of samples.

    Args:
        samples: samples that all have the target of ``kind``.
        kind: one of `meta_opt.data.samples.KINDS`; None reads inputs only.
        modalities: modalities to read; others are ignored.
        class_names: names of the K classes.
        side: of images and frames in pixels.
        unreadable: counter of unreadable files, whose samples are skipped.
        name: name of the progress bar.

    Raises:
        UnreadableFilesError: more files are unreadable than may be skipped.
    """
    rows = _with_media(name, samples, modalities, side, unreadable)
    kept = [row.sample for row in rows]
    if not rows:
        return LoadedSamples([], Samples())
    arrays = Samples(
        **_columns(rows, modalities, side),
        **({} if kind is None else _asked(kept, kind, class_names)),
        rate=RATE,
        skipped=len(samples) - len(rows),
    )
    return LoadedSamples(kept, arrays)


def _kind(sample: Sample) -> str:
    """The kind of a sample's target, one of `meta_opt.data.samples.KINDS`."""
    fields = sample.fields
    asked = [key for key in ASKED if getattr(fields, key) not in (None, ())]
    if len(asked) > 1:
        raise ValueError(
            f"{sample.where}: asks for {' and '.join(asked)}; one thing is asked for"
        )
    if not asked and not (sample.media.keys() == {"image"} and fields.text):
        raise ValueError(
            f"{sample.where}: needs one of {', '.join(ASKED)}; or `image` and a `text` "
            "that is not empty alone, to be found by each other"
        )
    return _KINDS[asked[0]] if asked else "retrieve"


def _has(sample: Sample, modality: str) -> bool:
    return modality in sample.media or (
        modality == "text" and bool(sample.fields.reads)
    )


def _split(sample: Sample) -> str:
    return sample.fields.split or held_out_split(sample.key)


class _Row(NamedTuple):
    """A sample and the arrays of its files."""

    sample: Sample
    media: dict[str, np.ndarray]


def _with_media(
    name: str,
    samples: Sequence[Sample],
    modalities: Sequence[str],
    side: int,
    unreadable: Unreadable,
) -> list[_Row]:
    """Reads the files of samples and skips unreadable samples."""
    from tqdm import tqdm

    rows = []
    for sample in tqdm(samples, desc=f"reading {name}", unit="sample", disable=None):
        media: dict[str, np.ndarray] = {}
        for modality, where in sample.media.items():
            if modality not in modalities:
                continue
            try:
                media[modality] = _array(modality, where, side)
            except ImportError:
                raise
            # Decoders raise exceptions of any type for damaged files.
            except Exception as error:
                unreadable.add(where.name, f"{type(error).__name__}: {error}")
                break
        else:
            rows.append(_Row(sample, media))
    return rows


def _array(modality: str, media: Media, side: int) -> np.ndarray:
    data = media.read()
    if modality == "audio":
        return read_clip(data, RATE, _SECONDS)
    if modality == "image":
        return fit_square(decode(data, MAX_PIXELS), side)
    frames = decode_frames(data, FRAMES, MAX_PIXELS, repeat=True)
    return np.stack([fit_square(frame, side) for frame in frames])


def _columns(
    rows: Sequence[_Row], modalities: Sequence[str], side: int
) -> dict[str, Any]:
    """Fields of `Samples`: the inputs, and which of them are absent."""
    blank = {
        "image": np.zeros((side, side, 3), np.uint8),
        "audio": np.zeros(0, np.int16),
        "video": np.zeros((FRAMES, side, side, 3), np.uint8),
    }
    found: dict[str, Any] = {
        m: [row.media.get(m, blank[m]) for row in rows]
        for m in modalities
        if m in MEDIA
    }
    if "text" in modalities:
        found["text"] = [row.sample.fields.reads for row in rows]
    absent = {}
    for modality in {"image", "video"} & set(modalities):
        found[modality] = np.stack(found[modality])
        absent[modality] = np.asarray([modality not in row.media for row in rows])
    return {**found, "absent": absent}


def _asked(
    samples: Sequence[Sample], kind: str, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Fields of `Samples`: the targets."""
    fields = [sample.fields for sample in samples]
    if kind == "classify":
        place = {name: i for i, name in enumerate(class_names)}
        labels = [place[str(field.label)] for field in fields]
        return {"label": np.asarray(labels, np.int32), "class_names": class_names}
    if kind == "score":
        return {"score": np.asarray([field.score for field in fields], np.float32)}
    if kind == "caption":
        return {"caption": [field.target[0] for field in fields]}
    return {"caption": [field.text[0] for field in fields]}
