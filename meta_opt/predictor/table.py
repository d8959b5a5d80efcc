"""Reads a user's data, in any of several forms, as rows of named values.

Forms: a JSONL file (one object per line), a CSV file with a header, a pandas DataFrame,
a list of mappings, a folder with one sub-folder per class (optionally below ``train``,
``validation`` and ``test``), and WebDataset tar files.
"""

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from meta_opt.data.sources.jsonl_samples import is_path, read_samples
from meta_opt.data.sources.sample_schema import Media
from meta_opt.data.sources.webdataset import COMPRESSED, MEDIA_ENDINGS
from meta_opt.text_files import read_jsonl, read_text

Data: TypeAlias = Any
"""A path, a pandas DataFrame or a sequence of mappings."""

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
"""Names of folders and their splits."""
_JSONL, _CSV = (".jsonl", ".json", ".ndjson"), (".csv", ".tsv")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Row(NamedTuple):
    """One sample as the user gave it.

    Attributes:
        values: by column, without empty ones. Files are paths, or `Media` if they are
            in a tar file.
        where: file and line, for messages.
    """

    values: Mapping[str, Any]
    where: str


class Table(NamedTuple):
    """Rows and their origin.

    Attributes:
        rows: at least one.
        folder: base of relative paths in the rows.
        name: for messages.
    """

    rows: Sequence[Row]
    folder: Path
    name: str

    def columns(self) -> tuple[str, ...]:
        """Names of the columns in order of first appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.values))


def read_table(data: Data, name: str = "data") -> Table:
    """Reads data in any of the forms; media files are not opened.

    Args:
        data: a path, a DataFrame or a sequence of mappings.
        name: of data that are not a file, for messages.

    Raises:
        ValueError: an unknown form, a line that is not an object, or no rows.
        FileNotFoundError: no such file.

    >>> table = read_table([{"text": "well done", "label": 1, "id": None}])
    >>> table.columns(), table.rows[0].where
    (('text', 'label'), 'data, row 1')
    """
    if isinstance(data, str | os.PathLike):
        table = _from_path(os.fspath(data))
    elif hasattr(data, "columns") and hasattr(data, "to_dict"):  # A DataFrame.
        table = _from_mappings(data.to_dict("records"), name)
    elif isinstance(data, Sequence) and all(isinstance(x, Mapping) for x in data):
        table = _from_mappings(data, name)
    else:
        raise ValueError(
            f"{name} of type {type(data).__name__} must be a path (JSONL, CSV, a "
            "folder, tar files), a pandas DataFrame or a list of dictionaries"
        )
    if not table.rows:
        raise ValueError(f"{table.name} has no sample")
    return table


def _from_path(name: str) -> Table:
    path = Path(name)
    ending = path.suffix.lower()
    if ending in _JSONL or ending in _CSV:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        read = _jsonl_rows if ending in _JSONL else _csv_rows
        return Table(list(read(path)), path.parent, name)
    if path.is_dir() and not any(path.glob("*.tar")):
        return Table(list(_folder_rows(path)), Path(), name)
    if path.is_dir() or name.lower().endswith((".tar", *COMPRESSED)):
        return Table(list(_tar_rows(name)), Path(), name)
    if not path.exists() and not is_path(name):
        raise FileNotFoundError(f"there is no file or folder {name}")
    raise ValueError(
        f"{name} is no JSONL ({', '.join(_JSONL)}), no CSV ({', '.join(_CSV)}), no "
        "folder with sub-folders and no tar file"
    )


def _jsonl_rows(path: Path) -> Iterator[Row]:
    def parse(value: Any, line: int) -> Row:
        if not isinstance(value, Mapping):
            raise ValueError("needs a JSON object; write one a line")
        return Row(_cleaned(value), f"{path}, line {line}")

    return read_jsonl(path, parse)


def _csv_rows(path: Path) -> Iterator[Row]:
    text = read_text(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    rows = []
    for values in lines:
        where = f"{path}, line {lines.line_num}"
        if None in values:
            raise ValueError(f"{where}: more cells than the header has columns")
        rows.append((values, where))
    numeric = {
        name
        for name in lines.fieldnames or ()
        if all(not row[name] or _NUMBER.fullmatch(row[name].strip()) for row, _ in rows)
    }
    for values, where in rows:
        parsed = {k: _number(v) if k in numeric and v else v for k, v in values.items()}
        yield Row(_cleaned(parsed), where)


def _number(text: str) -> int | float:
    value = float(text)
    return int(text) if re.fullmatch(r"[+-]?\d+", text.strip()) else value


def _folder_rows(path: Path) -> Iterator[Row]:
    """Files with the name of their sub-folder as class; none without sub-folders."""
    subs = [p for p in sorted(path.iterdir()) if p.is_dir() and p.name[0] not in "._"]
    if not subs:
        for file, kind in _media_files(path):
            yield Row({kind: str(file)}, str(file))
        return
    splits = {p: SPLIT_FOLDERS.get(p.name.lower()) for p in subs}
    divided = all(splits.values()) and all(
        any(child.is_dir() for child in p.iterdir()) for p in subs
    )
    for sub in subs:
        classes = sorted(p for p in sub.iterdir() if p.is_dir()) if divided else [sub]
        for folder in classes:
            for file, kind in _media_files(folder):
                values = {kind: str(file), "label": folder.name}
                values |= {"split": str(splits[sub])} if divided else {}
                yield Row(values, str(file))


def _media_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Image, audio and video files below a folder, with their modality."""
    for file in sorted(folder.rglob("*")):
        kind = MEDIA_ENDINGS.get(file.suffix.lower())
        if kind is not None and not file.name.startswith(".") and file.is_file():
            yield file, kind


def _tar_rows(pattern: str) -> Iterator[Row]:
    for sample in read_samples(pattern):
        fields = sample.fields
        values: dict[str, Any] = {**sample.media, "prompt": fields.prompt or None}
        for key in ("text", "target"):
            texts = getattr(fields, key)
            values[key] = texts[0] if len(texts) == 1 else list(texts) or None
        for key in ("label", "score", "split"):
            values[key] = getattr(fields, key)
        yield Row(_cleaned(values), sample.where)


def _from_mappings(data: Sequence[Mapping[str, Any]], name: str) -> Table:
    rows = [Row(_cleaned(x), f"{name}, row {i}") for i, x in enumerate(data, start=1)]
    return Table(rows, Path(), name)


def _cleaned(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain Python values, without missing ones."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif hasattr(value, "item") and getattr(value, "ndim", None) == 0:
            value = value.item()  # A NumPy scalar, as in DataFrames.
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        if missing or (isinstance(value, str) and not value.strip()):
            continue
        if isinstance(value, list) and not value:
            continue
        if not isinstance(value, str | bool | int | float | list | Media):
            # For example the missing values of pandas' extension types.
            if type(value).__name__ in ("NAType", "NaTType"):
                continue
            value = str(value)
        found[str(name)] = value
    return found
