"""Arguments and decisions of a call of `fit`, stored for the call that resumes it."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

import meta_opt
from meta_opt.data.sources.sample_schema import Media
from meta_opt.parallel.processes import any_process, json_from_first
from meta_opt.predictor.decision import Decision, as_json, from_json
from meta_opt.predictor.table import Table
from meta_opt.text_files import plain_json, read_versioned, write_json

T = TypeVar("T")

FILE = "fit.json"
_FORMAT = 1


class CallRecord:
    """The decisions of a call, written to a folder as soon as they are made.

    A later call with the same folder, arguments and data reuses the decisions of the
    first call, so that it trains the same model on the same samples, even if a newer
    version or another machine would choose differently. With several processes the
    first one decides for all of them and writes the file.

    Args:
        folder: folder of the call; None stores nothing.
        arguments: arguments that the result depends on, as JSON values.
        data: `fingerprint` of each table, by the name of its argument.

    Raises:
        ValueError: the folder belongs to a call with other arguments or data (the
            message names them), or the file has another format.

    Example:
        >>> record = CallRecord(None, {"seed": 0}, {})
        >>> record.decide("size", lambda: (8, [Decision("size", 8, "small")]), int, int)
        (8, [Decision(name='size', value=8, reason='small')])
    """

    def __init__(
        self,
        folder: Path | None,
        arguments: Mapping[str, Any],
        data: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._file = None if folder is None else folder / FILE
        given = {"arguments": arguments, "data": data}
        self._content = {
            "version": meta_opt.__version__,
            # Convert to JSON types, to compare them with values read from the file.
            **plain_json(given),
            "decided": {},
        }
        if folder is None:
            return
        problem: ValueError | None = None
        try:
            self._content = self._stored() or self._content
        except ValueError as error:
            problem = error
        # No process may write before all have read.
        if any_process(problem is not None):
            raise problem or ValueError(
                f"another process cannot use the folder {folder}; see its error message"
            )
        # On a shared disk, a file may become visible to some processes later.
        self._content = json_from_first(self._content)

    def _stored(self) -> dict[str, Any] | None:
        """Returns the content of the file; None if the file does not exist."""
        if self._file is None or not self._file.is_file():
            return None
        stored = read_versioned(self._file, _FORMAT)
        _check_same(self._file.parent, stored, self._content)
        return stored

    def decide(
        self,
        name: str,
        choose: Callable[[], tuple[T, list[Decision]]],
        encode: Callable[[T], Any],
        decode: Callable[[Any], T],
    ) -> tuple[T, list[Decision]]:
        """Chooses a value, or returns the recorded one.

        Args:
            name: key of the value in the file.
            choose: function that returns the value and its decisions.
            encode: function from the value to JSON values.
            decode: inverse of ``encode``.

        Returns:
            The value and its decisions.
        """
        decided = self._content["decided"]
        if name in decided:
            stored = decided[name]
            return decode(stored["value"]), list(from_json(stored["decisions"]))
        value, decisions = choose()
        several = jax.process_count() > 1
        if self._file is None and not several:
            return value, decisions
        chosen = {"value": encode(value), "decisions": as_json(decisions)}
        if several:
            chosen = json_from_first(chosen)
            value = decode(chosen["value"])
            decisions = list(from_json(chosen["decisions"]))
        if self._file is not None:
            decided[name] = chosen
            if jax.process_index() == 0:
                content = {"format": _FORMAT, **self._content}
                write_json(self._file, content, indent=None)
        return value, decisions


def fingerprint(table: Table, files: Sequence[str]) -> dict[str, Any]:
    """Returns the number of rows and a SHA-256 hash of each column.

    Args:
        table: the rows.
        files: columns of file names; the contents of these files are hashed too.
    """
    columns = {}
    for name in table.columns():
        digest = hashlib.sha256()
        for row in table.rows:
            value = row.values.get(name)
            found = (
                [Path(_media(value, table).name).name, _content(_media(value, table))]
                if name in files and isinstance(value, Media | str)
                else value
            )
            digest.update(json.dumps(found, default=str).encode() + b"\n")
        columns[name] = digest.hexdigest()
    return {"rows": len(table.rows), "columns": columns}


def _media(value: Media | str, table: Table) -> Media:
    return value if isinstance(value, Media) else Media(table.folder / value)


def _content(media: Media) -> str | None:
    try:
        return hashlib.sha256(media.read()).hexdigest()
    except OSError:  # Reported as unreadable when all samples are read.
        return None


def _check_same(
    folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    differ = [
        f"{name} was {stored['arguments'].get(name)!r} and is {value!r}"
        for name, value in given["arguments"].items()
        if stored["arguments"].get(name) != value
    ]
    for name in {**stored["data"], **given["data"]}:
        differ += _differences(name, stored["data"].get(name), given["data"].get(name))
    if differ:
        raise ValueError(
            f"workdir={os.fspath(folder)!r} holds a call of fit that differs from this "
            f"one: {'; '.join(differ)}. Repeat that call to resume it, or use another "
            "folder"
        )


def _differences(
    name: str, stored: Mapping[str, Any] | None, given: Mapping[str, Any] | None
) -> list[str]:
    if stored is None or given is None:
        return [f"{name} was {'not ' if stored is None else ''}given"]
    if stored["rows"] != given["rows"]:
        return [f"{name} had {stored['rows']} rows and has {given['rows']}"]
    columns = {**stored["columns"], **given["columns"]}
    other = [
        column
        for column in columns
        if stored["columns"].get(column) != given["columns"].get(column)
    ]
    return [f"{name} has other values in {', '.join(other)}"] if other else []
