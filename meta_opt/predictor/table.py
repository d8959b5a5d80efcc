"""Reads a user's data, in one of several forms, as rows of named values.

Forms: a JSONL file (one object per line), a CSV file with a header, a pandas DataFrame,
a list of mappings, a folder with one sub-folder per class (optionally below ``train``,
``validation`` and ``test``), and WebDataset tar files.
"""

import collections
import csv
import decimal
import io
import itertools
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from meta_opt.data.sources.class_folders import (
    class_folders,
    is_folder_of_tar_files,
    visible_files,
)
from meta_opt.data.sources.jsonl_samples import read_samples
from meta_opt.data.sources.sample_schema import Media
from meta_opt.data.sources.webdataset import COMPRESSED, MEDIA_ENDINGS
from meta_opt.data.splits import named_split
from meta_opt.text_files import read_jsonl, read_text

_log = logging.getLogger(__name__)

Data: TypeAlias = Any
"""A path, a DataFrame of pandas or Polars, or a sequence of mappings."""

_JSONL, _CSV = (".jsonl", ".json", ".ndjson"), (".csv", ".tsv")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_CODE = re.compile(r"0\d+")
"""Digits that are not a number, such as a postal code, whose leading 0 would be lost.
"""
_MISSING = ("na", "n/a", "nan", "null", "none")
"""Spellings of a missing number or boolean in files of common programs."""
_TRUTH = {"true": True, "false": False}
_END = "\0"
"""Line that is appended to a CSV file, to see whether the last cell is closed; text
files with this character are refused."""


class Row(NamedTuple):
    """One sample as given by the user.

    Attributes:
        values: non-empty values by column. Files are paths, or `Media` if they are in a
            tar file.
        where: file and line, for messages.
    """

    values: Mapping[str, Any]
    where: str


class Table(NamedTuple):
    """Rows and their origin.

    Attributes:
        rows: the rows, at least one.
        folder: base folder of relative paths in the rows.
        name: name of the data, for messages.
    """

    rows: Sequence[Row]
    folder: Path
    name: str

    def columns(self) -> tuple[str, ...]:
        """Returns the names of the columns in order of first appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.values))


def is_number(text: str) -> bool:
    """Returns whether a text can be converted to a number without loss.

    >>> is_number(" 1.5"), is_number("01067"), is_number("1,5")
    (True, False, False)
    """
    text = text.strip()
    return bool(_NUMBER.fullmatch(text)) and not _CODE.fullmatch(text)


def read_table(data: Data, name: str = "data") -> Table:
    """Reads data in any of the forms; media files are not opened.

    Args:
        data: a path, a DataFrame or a sequence of mappings.
        name: name of data that are not in a file, for messages.

    Raises:
        ValueError: an unknown form, a line that is not an object, or no rows.
        FileNotFoundError: a file that does not exist.

    >>> table = read_table([{"text": "well done", "label": 1, "id": None}])
    >>> table.columns(), table.rows[0].where
    (('text', 'label'), 'data, row 1')
    """
    if isinstance(data, str | os.PathLike):
        table = _from_path(os.fspath(data))
    elif hasattr(data, "columns") and hasattr(data, "to_dict"):  # A DataFrame.
        _check_distinct(list(map(str, data.columns)), name)
        polars = hasattr(data, "to_dicts")
        rows = data.to_dicts() if polars else data.to_dict("records")
        table = _from_mappings(rows, name)
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
    if path.is_dir() and not is_folder_of_tar_files(path, MEDIA_ENDINGS):
        return Table(list(_folder_rows(path)), path, name)
    if path.is_dir() or name.lower().endswith((".tar", *COMPRESSED)):
        return Table(list(_tar_rows(name)), Path(), name)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {name}")
    raise ValueError(
        f"{name} is not JSONL ({', '.join(_JSONL)}), CSV ({', '.join(_CSV)}), a folder "
        "with sub-folders or a tar file"
    )


def _jsonl_rows(path: Path) -> Iterator[Row]:
    def parse(value: Any, line: int) -> Row:
        if not isinstance(value, Mapping):
            raise ValueError("needs a JSON object; write one per line")
        where = f"{path}, line {line}"
        return Row(_cleaned(value, where), where)

    return read_jsonl(path, parse)


def _csv_rows(path: Path) -> Iterator[Row]:
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    header = text.lstrip("\n").partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter not in header:
        # Spreadsheets use semicolons or tabs in locales with a decimal comma.
        delimiter = next((mark for mark in ";\t" if mark in header), delimiter)
    # Python refuses cells above a limit, which is global.
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        records = list(_csv_records(path, text, delimiter))
    finally:
        csv.field_size_limit(limit)
    names = [name.strip() for name in records[0][1]] if records else []
    _check_distinct(names, str(path))
    rows = []
    for line, cells in records[1:]:
        where = f"{path}, line {line}"
        if len(cells) > len(names):
            raise ValueError(f"{where}: more cells than the header has columns")
        # A column without a name is an index that pandas wrote, or an empty one.
        named = {k: v for k, v in zip(names, cells, strict=False) if k}
        rows.append((named, where))
    readers = {name: _reader_of([x.get(name) for x, _ in rows]) for name in names}
    for values, where in rows:
        parsed = {k: readers[k](cell) for k, cell in values.items()}
        yield Row(_cleaned(parsed, where), where)


def _reader_of(cells: Sequence[str | None]) -> Callable[[str], Any]:
    """Returns what converts the cells of a column to numbers, booleans or texts."""
    given = [x for x in cells if x is not None and not _is_missing(x)]
    if given and all(map(is_number, given)):
        return _number
    if given and all(x.strip().casefold() in _TRUTH for x in given):
        return lambda cell: _TRUTH.get(cell.strip().casefold())
    return str


def _csv_records(
    path: Path, text: str, delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Yields the cells of each record that is not blank, with its last line's number.

    Raises:
        ValueError: a quotation mark that is not closed, which would make one cell of
            the rest of the file.
    """
    lines = itertools.chain(io.StringIO(text), [_END])
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    start = 1
    for cells in reader:
        if cells and cells[-1].endswith(_END):
            if cells != [_END]:
                raise ValueError(
                    f"{path}, line {start}: a quotation mark opens a cell and none "
                    "closes it; close it, or write a quotation mark in a cell twice "
                    "and put the cell in quotation marks"
                )
            return
        if cells:
            yield reader.line_num, cells
        start = reader.line_num + 1


def _is_missing(cell: str) -> bool:
    return not cell.strip() or cell.strip().casefold() in _MISSING


def _number(cell: str) -> int | float | None:
    if _is_missing(cell):
        return None
    return int(cell) if re.fullmatch(r"[+-]?\d+", cell.strip()) else float(cell)


def _check_distinct(names: Sequence[str], where: str) -> None:
    """Raises ValueError for repeated column names, since values would be lost.

    Columns without a name are ignored: spreadsheets write them at the end of lines.
    """
    twice = [name for name, n in collections.Counter(names).items() if n > 1 and name]
    if twice:
        raise ValueError(
            f"{where} has several columns called {', '.join(map(repr, twice))}: give "
            "each a name of its own"
        )


def _folder_rows(path: Path) -> Iterator[Row]:
    """Yields the files of sub-folders, with the name of the sub-folder as class.

    Their paths are relative to ``path``, since a hash of them decides on the splits.
    """
    subs = class_folders(path)
    if not subs:
        for file, kind in _media_files(path):
            yield Row({kind: str(file.relative_to(path))}, str(file))
        return
    splits = {p: named_split(p.name) for p in subs}
    divided = all(splits.values()) and all(map(class_folders, subs))
    for sub in subs:
        classes = class_folders(sub) if divided else [sub]
        for folder in classes:
            files = list(_media_files(folder))
            if not files:
                _log.warning(
                    "%s has no images, audio or video; it is not used as a class",
                    folder,
                )
            for file, kind in files:
                values = {kind: str(file.relative_to(path)), "label": folder.name}
                values |= {"split": str(splits[sub])} if divided else {}
                yield Row(values, str(file))


def _media_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields image, audio and video files below a folder, with their modality."""
    for file in visible_files(folder):
        if (kind := MEDIA_ENDINGS.get(file.suffix.lower())) is not None:
            yield file, kind


def _tar_rows(pattern: str) -> Iterator[Row]:
    # Targets are checked later, and not needed for predictions.
    for sample in read_samples(pattern, asked=False):
        fields = sample.fields
        values: dict[str, Any] = {**sample.media, "prompt": fields.prompt or None}
        for key in ("text", "target"):
            texts = getattr(fields, key)
            values[key] = texts[0] if len(texts) == 1 else list(texts) or None
        values |= {"label": fields.given_label, "score": fields.score}
        values["split"] = fields.split
        yield Row(_cleaned(values, sample.where), sample.where)


def _from_mappings(data: Sequence[Mapping[str, Any]], name: str) -> Table:
    rows = []
    for i, values in enumerate(data, start=1):
        where = f"{name}, row {i}"
        rows.append(Row(_cleaned(values, where), where))
    return Table(rows, Path(), name)


def _cleaned(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Converts values to plain Python types, and drops missing ones.

    Raises:
        ValueError: images, arrays or bytes, which must be given as files.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif hasattr(value, "item") and getattr(value, "ndim", None) == 0:
            value = value.item()  # A NumPy scalar, as in DataFrames.
        elif isinstance(value, decimal.Decimal):
            value = float(value)
        if _is_content(value):
            raise ValueError(
                f"{where}: the column {name!r} has a value of type "
                f"{type(value).__name__}; write images, audio and video to files "
                "and give their paths, and decode texts"
            )
        if isinstance(value, list | tuple) and not isinstance(value, Media):
            value = [x for x in value if not _is_absent(x)]
        if _is_absent(value):
            continue
        if not isinstance(value, str | bool | int | float | list | Media):
            value = str(value)
        found[str(name)] = value
    return found


def _is_absent(value: Any) -> bool:
    """Returns whether a value is missing, a blank text or an empty list."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list):
        return not value
    # Missing values of pandas' extension types.
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _is_content(value: Any) -> bool:
    """Returns whether a value is bytes, or an array or image of any library."""
    if isinstance(value, Mapping):
        return any(map(_is_content, value.values()))
    if isinstance(value, list | tuple):
        # NumPy's scalars are arrays, too.
        return any(_is_content(x) for x in value if getattr(x, "ndim", 1) != 0)
    arrays = ("__array__", "__array_interface__")
    return isinstance(value, bytes | bytearray | memoryview) or any(
        hasattr(value, name) for name in arrays
    )
