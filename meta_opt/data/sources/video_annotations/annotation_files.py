"""Validated entries of JSON files and tables, with errors that state what was expected.

An :class:`Entry` is an object of a JSON file or a row of a table. All problems raise
ValueErrors of the form ``FILE, ENTRY: PROBLEM; expected FORM``.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_opt.error_messages import truncate
from meta_opt.text_files import decode_text, parse_json
from meta_opt.types import near_match

_LONGEST_ID = 200
"""Largest number of bytes of an id; file names may have 255 including the extension."""


class Entry:
    """An object of a JSON file or a row of a table.

    Args:
        where: file and location in it, for error messages.
        form: the expected form, for error messages.
        value: the JSON value, or the row by column.

    Raises:
        ValueError: if ``value`` is not a mapping.

    >>> entry = Entry("a.json, entry 0", '{"id": 0, "q": ""}', {"id": 7})
    >>> entry.integer("id")
    7
    >>> entry.text("q")
    Traceback (most recent call last):
    ValueError: a.json, entry 0: no key 'q', only 'id'; expected {"id": 0, "q": ""}
    """

    def __init__(self, where: str, form: str, value: Any) -> None:
        self.where, self.form = where, form
        if not isinstance(value, Mapping):
            raise self.error(f"needs a JSON object, not {_shown(value)}")
        self._values = value

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def error(self, problem: str) -> ValueError:
        """Returns the error for a problem with this entry."""
        return ValueError(f"{self.where}: {problem}; expected {self.form}")

    def value(self, key: str) -> Any:
        """The value of a key, unchecked.

        Raises:
            ValueError: if there is no such key.
        """
        if key not in self._values:
            there = ", ".join(repr(name) for name in list(self._values)[:10])
            raise self.error(
                f"no key {key!r}{near_match(key, map(str, self._values))}, only {there}"
                if there
                else f"no key {key!r}"
            )
        return self._values[key]

    def text(self, key: str, blank: bool = False) -> str:
        """The text at ``key``, stripped.

        Args:
            key: key of the value.
            blank: whether the text may be blank.

        Raises:
            ValueError: if the value is not a text, or is blank but must not be.
        """
        value = self.value(key)
        if not isinstance(value, str):
            raise self.error(f"{key!r} must be a string, not {_shown(value)}")
        if not (blank or value.strip()):
            raise self.error(f"{key!r} is blank and must have a text")
        return value.strip()

    def identifier(self, key: str) -> str:
        """A text that is valid as a file name.

        Raises:
            ValueError: if the value is not a text, or has path separators.
        """
        name = self.text(key)
        if (
            name in (".", "..")
            or re.search(r"[/\\\x00-\x1f]", name)
            or len(name.encode()) > _LONGEST_ID
        ):
            raise self.error(f"{key!r} cannot name a file: {_shown(name)}")
        return name

    def choice(self, key: str, known: Mapping[str, str]) -> str:
        """Looks up a text in ``known`` and returns its value there.

        Raises:
            ValueError: if the text is not one of them.
        """
        name = self.text(key)
        if name not in known:
            raise self.error(
                f"{key!r} is {_shown(name)}, not one of {', '.join(known)}"
                f"{near_match(name, known)}"
            )
        return known[name]

    def number(self, key: str, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number in [low, high], as a JSON number or as text in a table.

        Raises:
            ValueError: if the value is no such number.
        """
        value = self.value(key)
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not (math.isfinite(number) and low <= number <= high):
            within = "" if math.isinf(low) else f" in [{low:g}, {high:g}]"
            raise self.error(f"{key!r} must be a number{within}, not {_shown(value)}")
        return number

    def integer(self, key: str, low: int = 0, high: float = 2**53) -> int:
        """A whole number in [low, high].

        Raises:
            ValueError: if the value is no such number.
        """
        number = self.number(key, low, high)
        if not number.is_integer():
            value = _shown(self.value(key))
            raise self.error(f"{key!r} must be an integer, not {value}")
        return int(number)

    def entries(self, key: str) -> Iterator["Entry"]:
        """The objects of a list.

        Raises:
            ValueError: if the value is not a list, or a member not an object.
        """
        value = self.value(key)
        if not isinstance(value, list):
            raise self.error(f"{key!r} must be a list, not {_shown(value)}")
        for i, member in enumerate(value):
            yield Entry(
                f"{self.where}{_place(self.where, key)}[{i}]", self.form, member
            )

    def members(self, key: str) -> Iterator[tuple[str, "Entry"]]:
        """The objects of an object, by name.

        Raises:
            ValueError: if the value or a member is not an object.
        """
        value = self.value(key)
        if not isinstance(value, Mapping):
            raise self.error(f"{key!r} must be an object, not {_shown(value)}")
        for name, member in value.items():
            place = f"{_place(self.where, key)}[{_shown(name)}]"
            yield name, Entry(f"{self.where}{place}", self.form, member)


def read_object(path: Path, form: str) -> Entry:
    """The object of a JSON file.

    Args:
        path: the file.
        form: the expected form, for errors.

    Raises:
        ValueError: if the file is not UTF-8, not JSON or not an object.
        FileNotFoundError: if there is no such file.
    """
    return Entry(str(path), form, _read_json(path, form))


def read_list(path: Path, form: str) -> Iterator[Entry]:
    """The objects of a JSON file that is a list.

    Args:
        path: the file.
        form: the expected form of an object, for errors.

    Raises:
        ValueError: if the file is not UTF-8, not JSON or not a list of objects.
        FileNotFoundError: if there is no such file.
    """
    value = _read_json(path, form)
    if not isinstance(value, list):
        raise ValueError(
            f"{path}: needs a JSON list, not {_shown(value)}; expected a list of {form}"
        )
    for i, member in enumerate(value):
        yield Entry(f"{path}, entry {i}", form, member)


def read_table(path: Path, columns: Sequence[str], delimiter: str) -> Iterator[Entry]:
    r"""The rows of a table whose first line names the columns.

    Fields with the delimiter, quotes or line breaks in them are in double quotes, as
    spreadsheets and pandas write them.

    Args:
        path: the file, in UTF-8.
        columns: names of the required columns; others may exist.
        delimiter: a comma, a semicolon or a tab.

    Raises:
        ValueError: if the file is not UTF-8, a column is missing or named twice, quotes
            are not closed, or a row has more or fewer fields than the first line.
        FileNotFoundError: if there is no such file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.csv"
    >>> _ = path.write_text('video_id,sentence\nvideo7,"a car, parked"\n')
    >>> [row.text("sentence") for row in read_table(path, ["video_id"], ",")]
    ['a car, parked']
    """
    named = {"\t": "tabs", ";": "semicolons"}.get(delimiter, "commas")
    form = f"columns {', '.join(columns)}, separated by {named}"
    try:
        text = decode_text(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected {form}") from None
    # Lines are split by the CSV reader, since quoted fields may have line breaks.
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        try:
            fields = next(lines, None)
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {lines.line_num}: {error}; expected {form}"
            ) from None
        if fields is None:
            break
        if not any(field.strip() for field in fields):
            continue
        where = f"{path}, line {lines.line_num}"
        if not header:
            header = [field.strip() for field in fields]
            _check_header(where, header, columns, form)
            continue
        if len(fields) != len(header):
            raise ValueError(
                f"{where}: {len(fields)} fields, where the first line has "
                f"{len(header)}; expected {form}"
            )
        yield Entry(where, form, dict(zip(header, fields, strict=True)))
    if not header:
        raise ValueError(f"{path}: no line; expected {form}")


def find_file(path: Path, names: Sequence[str]) -> Path:
    """Finds the first existing file of several names in a folder.

    Args:
        path: the folder, or one of its files.
        names: file names, in order of preference.

    Raises:
        FileNotFoundError: if none exists; the message names them.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}, a folder with {' or '.join(names)}"
        )
    folder = path if path.is_dir() else path.parent
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has no file {' or '.join(names)}")


def _read_json(path: Path, form: str) -> Any:
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected {form}") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply; expected {form}") from None


def _check_header(
    where: str, header: list[str], columns: Sequence[str], form: str
) -> None:
    for column in columns:
        if column not in header:
            raise ValueError(
                f"{where}: no column {column!r}{near_match(column, header)}, only "
                f"{_shown(', '.join(header))}; expected {form}"
            )
    for column in header:
        if header.count(column) > 1:
            raise ValueError(
                f"{where}: column {column!r} occurs twice; expected {form}"
            )


def _place(where: str, key: str) -> str:
    """Appends a key to a location: `FILE, key` or `FILE, entry.key`."""
    return f".{key}" if where.endswith("]") else f", {key}"


def _shown(value: Any) -> str:
    return truncate(repr(value))
