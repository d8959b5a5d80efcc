"""A user's own samples of several modalities: a JSONL file.

A line a sample: any of ``image``, ``audio`` and ``video`` (an animated WebP, GIF or
PNG), paths relative to the file, and ``text``; and what is asked for, ``label`` (a
class), ``score`` (a number) or ``caption`` (a text that is to be written). With none of
these, pictures and texts are to find each other. ``split`` says where a sample belongs;
without it a hash of its first file, or of its text, decides.
"""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.data.audio_files import read_clip
from meta_opt.data.images import decode, decode_frames, fit_square
from meta_opt.data.jsonl import read_jsonl
from meta_opt.data.pictures import MAX_PIXELS
from meta_opt.data.records import SPLITS
from meta_opt.data.samples import MODALITIES, MultimodalTask, Samples
from meta_opt.data.splits import split_of
from meta_opt.data.whisper_mel import RATE
from meta_opt.types import near_match

_log = logging.getLogger(__name__)

FRAMES = 8
"""Of a clip."""
_SECONDS = 30.0
"""Of sound that is kept; Whisper's longest."""
_FILES = ("image", "video", "audio")
_ASKED = {"label": "classify", "score": "score", "caption": "caption"}
_KEYS = (*MODALITIES, *_ASKED, "split")
_LISTED = 5
"""Of files that cannot be read, in a message."""


def own_task(path: str | os.PathLike) -> MultimodalTask:
    """The task that a JSONL file describes; media are read with a split.

    Samples with a file that cannot be read are skipped and counted.

    Args:
        path: the file.

    Raises:
        ValueError: a line that is no sample, that asks for something else than the
            first one or lacks half of a pair (it is named), or no line at all.
        FileNotFoundError: no such file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "samples.jsonl"
        >>> _ = file.write_text('{"text": "well done", "label": "praise"}')
        >>> task = own_task(file)
        >>> task.kind, task.modalities
        ('classify', ('text',))
    """
    path = Path(path)
    lines = _lines(path)
    if not lines:
        raise ValueError(f"{path} has no sample")
    kind = _kind(lines[0])
    modalities = tuple(m for m in MODALITIES if any(m in line for line in lines))
    names = tuple(sorted({str(line["label"]) for line in lines if "label" in line}))

    def read(split: str, data_dir: str | os.PathLike | None, side: int) -> Samples:
        del data_dir
        part = [line for line in lines if line["split"] == split]
        kept, skipped = _with_media(path, split, part, side)
        if not kept:
            raise ValueError(
                f"{path}: no sample is left for {split} (it has {len(part)}, of which "
                f"{skipped} cannot be read); give samples a `split`"
            )
        return Samples(
            **_columns(kept, modalities, side),
            **_asked(kept, kind, names),
            rate=RATE,
            skipped=skipped,
        )

    return MultimodalTask(kind, modalities, str(path), read)


def _lines(path: Path) -> list[dict[str, Any]]:
    kind = ""

    def parse(value: Any) -> dict[str, Any]:
        nonlocal kind
        line = _checked(value)
        kind = kind or _kind(line)
        if _kind(line) != kind:
            raise ValueError(f"asks to {_kind(line)}, the first sample to {kind}")
        return line

    return list(read_jsonl(path, parse))


def _checked(value: Any) -> dict[str, Any]:
    """A line without what is null, and with its split."""
    if not isinstance(value, dict):
        raise ValueError("needs a JSON object")
    line = {k: v for k, v in value.items() if v is not None}
    for key in line:
        if key not in _KEYS:
            raise ValueError(
                f"no key {key!r}{near_match(key, _KEYS)} (keys: {', '.join(_KEYS)})"
            )
    for key in (*MODALITIES, "caption"):
        if key in line and not isinstance(line[key], str):
            raise ValueError(f"`{key}` must be a text, not {line[key]!r}")
    if not any(m in line for m in MODALITIES):
        raise ValueError(f"needs one of {', '.join(MODALITIES)}")
    _check_asked(line)
    first = next(line[key] for key in (*_FILES, "text") if key in line)
    split = line.setdefault("split", split_of(first))
    if split not in SPLITS:
        raise ValueError(
            f"no split {split!r}{near_match(str(split), SPLITS)} "
            f"(splits: {', '.join(SPLITS)})"
        )
    return line


def _check_asked(line: dict[str, Any]) -> None:
    """Whether one thing is asked for, and is there."""
    asked = [key for key in _ASKED if key in line]
    if len(asked) > 1:
        raise ValueError(f"asks for {' and '.join(asked)}; one thing is asked for")
    if not asked and set(line) & set(MODALITIES) != {"image", "text"}:
        raise ValueError(
            f"needs one of {', '.join(_ASKED)}; or `image` and `text` alone, to be "
            "found by each other"
        )
    written = "caption" if asked else "text"
    if asked in ([], ["caption"]) and not line[written].strip():
        raise ValueError(f"an empty {written}")
    if "score" in line and not math.isfinite(float(line["score"])):
        raise ValueError(f"score={line['score']} is not finite")


def _kind(line: dict[str, Any]) -> str:
    return next((kind for key, kind in _ASKED.items() if key in line), "retrieve")


def _with_media(
    path: Path, split: str, lines: Sequence[dict[str, Any]], side: int
) -> tuple[list[dict[str, Any]], int]:
    """Lines with arrays in place of files, and how many had a broken one."""
    from tqdm import tqdm

    kept, reasons = [], []
    for line in tqdm(lines, desc=f"reading {split}", unit="sample", disable=None):
        try:
            media = {
                modality: _media(modality, path.parent / line[modality], side)
                for modality in _FILES
                if modality in line
            }
        except ImportError:
            raise
        # A decoder raises anything on a damaged file.
        except Exception as error:
            name = next(line[m] for m in _FILES if m in line)
            reasons.append(f"{name}: {type(error).__name__}: {error}")
        else:
            kept.append({**line, **media})
    if reasons:
        more = ["..."] if len(reasons) > _LISTED else []
        _log.warning(
            "%s: skipped %d of %d samples of %s with a file that cannot be read:\n  %s",
            *(path, len(reasons), len(lines), split),
            "\n  ".join(reasons[:_LISTED] + more),
        )
    return kept, len(reasons)


def _media(modality: str, file: Path, side: int) -> np.ndarray:
    if modality == "audio":
        return read_clip(file, RATE, _SECONDS)
    if modality == "image":
        return fit_square(decode(file.read_bytes(), MAX_PIXELS), side)
    frames = decode_frames(file.read_bytes(), FRAMES, MAX_PIXELS)
    if not frames:
        raise ValueError(f"a clip needs {FRAMES} frames")
    return np.stack([fit_square(frame, side) for frame in frames])


def _columns(
    lines: Sequence[dict[str, Any]], modalities: Sequence[str], side: int
) -> dict[str, Any]:
    """Fields of `Samples`: the inputs, and which of them are absent."""
    blank = {
        "image": np.zeros((side, side, 3), np.uint8),
        "text": "",
        "audio": np.zeros(0, np.int16),
        "video": np.zeros((FRAMES, side, side, 3), np.uint8),
    }
    found: dict[str, Any] = {
        m: [line.get(m, blank[m]) for line in lines] for m in modalities
    }
    absent = {}
    for modality in {"image", "video"} & set(modalities):
        found[modality] = np.stack(found[modality])
        absent[modality] = np.asarray([modality not in line for line in lines])
    return {**found, "absent": absent}


def _asked(
    lines: Sequence[dict[str, Any]], kind: str, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Fields of `Samples`: what is asked for."""
    if kind == "classify":
        place = {name: i for i, name in enumerate(class_names)}
        labels = [place[str(line["label"])] for line in lines]
        return {"label": np.asarray(labels, np.int32), "class_names": class_names}
    if kind == "score":
        return {"score": np.asarray([line["score"] for line in lines], np.float32)}
    written = "caption" if kind == "caption" else "text"
    return {"caption": [line[written] for line in lines]}
