"""Reading and writing of text and JSON files in UTF-8, with or without a BOM.

Errors name file and line.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from meta_opt.types import write_atomic

T = TypeVar("T")

MAX_DEPTH = 100
"""Largest nesting depth, since later operations such as `repr` are recursive."""

_BEGINNINGS = {
    b"\xff\xfe": "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8",
    b"\x1f\x8b": "a gzip file; decompress it: gunzip",
}
_TOO_DEEP = "the JSON is nested too deeply"
_LATIN = "convert it, if it is Latin-1: iconv -f LATIN1 -t UTF-8"


def decode_text(data: bytes) -> str:
    r"""Decodes UTF-8 and removes a leading byte order mark.

    Raises:
        ValueError: bytes that are not UTF-8, or NUL characters, which text of UTF-16
            without a byte order mark has.

    >>> decode_text(b"\xef\xbb\xbfcaf\xc3\xa9")
    'café'
    """
    for beginning, what in _BEGINNINGS.items():
        if data.startswith(beginning):
            raise ValueError(f"not UTF-8; looks like {what}")
    if b"\0" in data:
        raise ValueError("it has NUL characters, as in UTF-16; convert it to UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8: 0x{data[error.start]:02x} at byte {error.start + 1}; {_LATIN}"
        ) from None


def parse_json(data: bytes) -> Any:
    """Parses strict JSON in UTF-8.

    Raises:
        ValueError: not UTF-8 or not JSON; NaN and infinities, which JSON does not have,
            and numbers that overflow a float; duplicate keys of an object; an unpaired
            surrogate, which tokenizers and files reject; nesting deeper than
            `MAX_DEPTH`.

    >>> parse_json(b'{"a": [1, null]}')
    {'a': [1, None]}
    """
    return _parsed(
        decode_text(data),
        parse_constant=_no_constant,
        parse_float=_finite,
        object_pairs_hook=_without_duplicates,
    )


def read_text(path: str | os.PathLike) -> str:
    """Reads a text file in UTF-8.

    Raises:
        ValueError: as `decode_text`, the file named.
        OSError: a file that is not there or cannot be read.
    """
    try:
        return decode_text(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a JSON object from a file in UTF-8.

    Raises:
        ValueError: as `read_json_value`, or not an object; the message names the file.
        OSError: a file that is not there or cannot be read.
    """
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it is not a JSON object")
    return value


def read_versioned(path: str | os.PathLike, version: int) -> dict[str, Any]:
    """Reads a JSON object whose key ``format`` is a version number.

    Returns:
        The object without ``format``.

    Raises:
        ValueError: as `read_json`; a file that cannot be read, or of another version.
    """
    try:
        about = read_json(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if (found := about.pop("format", None)) != version:
        raise ValueError(f"{path} has format {found!r}; this code reads {version}")
    return about


def read_json_value(path: str | os.PathLike) -> Any:
    """Reads a JSON value from a file in UTF-8.

    Unlike `parse_json` it accepts NaN and infinities, which occur in results.

    Raises:
        ValueError: not UTF-8, not JSON, half a surrogate pair, or lists and objects in
            more than `MAX_DEPTH` others; the file is named.
        OSError: a file that is not there or cannot be read.
    """
    text = read_text(path)
    try:
        return _parsed(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in UTF-8, atomically; its folder is made."""
    with write_atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 2) -> None:
    """Writes a JSON file in UTF-8, atomically.

    Args:
        path: the file; its folder is made.
        value: JSON value.
        indent: number of spaces per level; None writes a single line.

    Raises:
        TypeError: a value that JSON does not have.
    """
    text = json.dumps(value, indent=indent)
    write_text(path, text + "\n")


def plain_json(value: Any, default: Callable[[Any], Any] | None = None) -> Any:
    """The value as it is after writing and reading: tuples are lists, keys are text.

    >>> plain_json({1: (2, 3)})
    {'1': [2, 3]}
    """
    return json.loads(json.dumps(value, default=default))


def read_jsonl(path: Path, parse: Callable[[Any, int], T]) -> Iterator[T]:
    r"""Applies a function to the JSON value of each line that is not blank.

    Args:
        path: the file.
        parse: function of a line's JSON value and its number, from 1; raises ValueError
            for invalid values.

    Raises:
        ValueError: a line that is not JSON, see `parse_json`, or that ``parse``
            rejects; the message names file and line.
        FileNotFoundError: the file does not exist.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "numbers.jsonl"
        >>> _ = file.write_text("1 \n\n 2")
        >>> list(read_jsonl(file, lambda value, line: (line, value)))
        [(1, 1), (3, 2)]
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                if line.strip() in (b"[", b"{"):
                    raise ValueError("a value over several lines; write each on one")
                parsed = parse(parse_json(line.strip()), number)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            yield parsed


def write_jsonl(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON Lines in UTF-8, atomically.

    Args:
        path: the file; its folder is made.
        rows: JSON objects, consumed while the file is written.

    Raises:
        TypeError: a value that JSON does not have.
        ValueError: NaN or an infinity, which JSON does not have.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "rows.jsonl"
        >>> write_jsonl(file, [{"text": "é"}, {"text": None}])
        >>> print(file.read_text(encoding="utf-8"), end="")
        {"text": "é"}
        {"text": null}
    """
    with write_atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _place(error: json.JSONDecodeError) -> str:
    line = f"line {error.lineno}, " if error.lineno > 1 else ""
    return f"{error.msg} at {line}column {error.colno}"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; leave the key out, or write null")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"duplicate key {key!r}")
        found[key] = value
    return found


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"the number {text[:20]} is larger than any float")
    return number


def _parsed(text: str, **hooks: Any) -> Any:
    """The value of JSON; raises ValueError."""
    try:
        value = json.loads(text, **hooks)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON: {_place(error)}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    # Level by level, since recursion would fail for deep nesting.
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [x for x in level if isinstance(x, dict | list)]
        for part in level:
            if isinstance(part, str):
                _check_characters(part)
        level = [
            x for n in nested for x in (n if isinstance(n, list) else (*n, *n.values()))
        ]
        if not level:
            return value
    raise ValueError(_TOO_DEEP)


def _check_characters(text: str) -> None:
    """Raises ValueError for half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])[1:-1]
        raise ValueError(
            f"a string has half of a surrogate pair, {half} at character "
            f"{error.start + 1}: the character was cut in two; fix or remove it"
        ) from None
