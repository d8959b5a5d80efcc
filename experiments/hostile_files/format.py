"""A file format: a valid sample, its reader, and the errors that it may raise."""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.hostile_files import samples

Files = Mapping[str, bytes]
_NO_NAME = (OSError, ValueError)


@dataclasses.dataclass(frozen=True)
class Format:
    """A format and the contract of its reader.

    Attributes:
        files: makes a valid sample, contents by path relative to a folder.
        read: reads the folder; its return value is ignored.
        damage: kind of mutation for each damaged file, by name, see
            `experiments.hostile_files.mutations.KINDS`.
        errors: exceptions that the reader may raise.
        is_named: whether an error message must name a file; readers of bytes have no
            file name.
        sealed: by name of a JSON file, the file whose SHA-256 it has under ``sha256``.
            The hash is recomputed, as an attacker who changes both files would do.
        costly: whether a call takes a substantial part of a second.
    """

    files: Callable[[], Files]
    read: Callable[[Path], Any]
    damage: Mapping[str, str]
    errors: tuple[type[Exception], ...] = (ValueError, FileNotFoundError)
    is_named: bool = True
    sealed: tuple[str, str] | None = None
    costly: bool = False

    def seal(self, found: Files) -> Files:
        """Returns the files with recomputed SHA-256 hashes, if the JSON is valid."""
        if self.sealed is None:
            return found
        about, data = self.sealed
        try:
            value = json.loads(found[about])
            value["sha256"] = hashlib.sha256(found[data]).hexdigest()
        except (ValueError, TypeError, RecursionError):
            return found
        return {**found, about: samples.dumped(value)}


def of_bytes(name: str, data: Callable[[], bytes], read: Any, kind: str) -> Format:
    """Returns a format of one file whose reader takes its bytes.

    Args:
        name: name of the file.
        data: makes the contents of a valid file.
        read: reads the bytes.
        kind: kind of damage, one of `experiments.hostile_files.mutations.KINDS`.
    """
    return Format(
        lambda: {name: data()},
        lambda folder: read((folder / name).read_bytes()),
        {name: kind},
        errors=_NO_NAME,
        is_named=False,
    )


def of_file(name: str, data: Callable[[], bytes], read: Any, kind: str) -> Format:
    """Returns a format of one file whose reader takes its path, see `of_bytes`."""
    return Format(
        lambda: {name: data()}, lambda folder: read(folder / name), {name: kind}
    )


def written(write: Callable[[Path], Any]) -> Files:
    """Returns the files that a function writes into a folder."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        return {
            path.relative_to(name).as_posix(): path.read_bytes()
            for path in sorted(Path(name).rglob("*"))
            if path.is_file()
        }
