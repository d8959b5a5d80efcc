"""Converts rows of a table to samples."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from meta_opt.data.sources.sample_schema import Fields, Media, Sample
from meta_opt.data.splits import named_split
from meta_opt.predictor.columns import ALTERNATIVES, Columns
from meta_opt.predictor.table import Row, Table, is_number

_PLAIN = ("text", "prompt")
"""Columns whose text is not prefixed with the column's name."""
_LARGEST = float(np.finfo(np.float32).max)


class Converted(NamedTuple):
    """Samples of a table's rows.

    Attributes:
        samples: samples in the order of the rows.
        rows: index of each sample's row.
        without_target: number of rows left out because they lack a target.
        without_input: number of rows left out because they lack any input.
    """

    samples: list[Sample]
    rows: list[int]
    without_target: int
    without_input: int


def to_samples(table: Table, columns: Columns, target: bool = True) -> Converted:
    """Converts rows to samples.

    Args:
        table: the rows.
        columns: roles of the columns.
        target: whether to read targets and leave out rows without one.

    Raises:
        ValueError: a score that is not a number, or not finite in 32 bits.
    """
    samples, kept, lacking, empty = [], [], 0, 0
    folder = table.folder.resolve()
    for index, row in enumerate(table.rows):
        asked = row.values.get(columns.target) if target else None
        media = {
            modality: _media(row.values[name], table.folder)
            for modality, name in columns.media.items()
            if name in row.values
        }
        text = row_text(row, columns)
        paired = bool(media and text) or columns.kind != "retrieve"
        if not (media or text) or (target and not paired):
            empty += 1
        elif target and columns.target and asked is None:
            lacking += 1
        else:
            fields = Fields(
                files={},
                text=(text,) if text else (),
                split=_split(row, columns),
                **({} if asked is None else _asked(row, columns)),
            )
            key = _key(media, folder) or text
            samples.append(Sample(row.where, key, media, fields))
            kept.append(index)
    return Converted(samples, kept, lacking, empty)


def _split(row: Row, columns: Columns) -> str | None:
    return named_split(row.values.get(columns.split, "")) if columns.split else None


def row_text(row: Row, columns: Columns) -> str:
    """Returns the text of a row: one line per text column.

    Of a list of alternative texts the first one is read; other lists, such as of tags,
    are joined.
    """
    lines = []
    for name in columns.text:
        if name not in row.values:
            continue
        value = row.values[name]
        if isinstance(value, list):
            one = columns.kind == "retrieve" or name.casefold() in ALTERNATIVES
            text = ", ".join(map(_written, value[:1] if one else value))
        else:
            text = _written(value)
        plain = len(columns.text) == 1 or name in _PLAIN
        lines.append(text if plain else f"{name}: {text}")
    return "\n".join(lines)


def _written(value: Any) -> str:
    # Tables with empty cells turn 1 into 1.0.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def class_name(value: Any) -> str:
    """Returns the class name of a target value.

    >>> class_name(True), class_name(3.0), class_name(" cat ")
    ('true', '3', 'cat')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def class_names_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Returns the sorted class names of training samples; empty for other tasks."""
    labels = {sample.fields.label for sample in samples}
    return tuple(sorted(str(label) for label in labels if label is not None))


def class_value(name: str, labels: str) -> Any:
    """Returns the target value of a class; the inverse of `class_name`.

    >>> class_value("3", "integer"), class_value("true", "truth")
    (3, True)
    """
    if labels == "integer":
        return int(name)
    return name == "true" if labels == "truth" else name


def _asked(row: Row, columns: Columns) -> dict[str, Any]:
    value = row.values[columns.target]
    if columns.kind == "classify":
        return {"label": class_name(value)}
    if columns.kind == "score":
        return {"score": _score(row, columns.target)}
    texts = value if isinstance(value, list) else [value]
    return {"target": tuple(map(str, texts))}


def _score(row: Row, name: str) -> float:
    value = row.values[name]
    if isinstance(value, str) and is_number(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"{row.where}: the target {name!r} must be a number, not {value!r:.60}; "
            "correct it or leave it empty"
        )
    # Compared as it is, since an integer may be too large for any float.
    if not -_LARGEST <= value <= _LARGEST:
        raise ValueError(
            f"{row.where}: the target {name!r}, {value!r:.60}, is not finite in 32 "
            "bits; correct it or leave it empty"
        )
    return float(value)


def _media(value: Any, folder: Path) -> Media:
    return value if isinstance(value, Media) else Media(folder / str(value))


def _key(media: dict[str, Media], folder: Path) -> str:
    """Returns the key that is hashed for the split: the path of the first file."""
    first = next(iter(media.values()), None)
    if first is None:
        return ""
    if first.member:
        return f"{first.file.name}/{first.member}"
    return Path(os.path.relpath(first.file.resolve(), folder)).as_posix()
