"""Lazily read image sources that tolerate some unreadable files.

An unreadable image is counted and replaced by the next readable one, so that one broken
file does not end a long run, and repeated runs get the same batches.
"""

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.data.preprocessing.images import decode
from meta_opt.data.records import SPLITS, MemorySource, Record
from meta_opt.data.splits import held_out_split, unit_hash

_log = logging.getLogger(__name__)

MAX_PIXELS = 50_000_000
"""Larger images count as unreadable."""


class UnreadableFilesError(ValueError):
    """More files are unreadable than may be skipped; the message lists them."""


class VanishedFileError(ValueError):
    """A file disappeared since the run began.

    Skipping it would give other batches than an undisturbed run has, and checkpoints
    would still record it as skipped after the file is restored.
    """


class Picture(NamedTuple):
    """One row: an image file's bytes, its captions, class index and prompt.

    For visual question answering, the prompt is the question ("" if there is none) and
    the captions are the answers.
    """

    data: bytes
    captions: tuple[str, ...]
    label: int
    prompt: str = ""


class Rows(Protocol):
    """A table of images and captions.

    Attributes:
        class_names: K names that labels index; the single name "" without classes.
    """

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Picture:
        """Reads a row; raises OSError if the file cannot be read."""

    def key(self, index: int) -> str:
        """The unique key of the image, whose hash decides its split."""

    def name(self, index: int) -> str:
        """The row's name in messages."""

    def split(self, index: int) -> str | None:
        """The row's own split; None if the hash decides."""

    def has_vanished(self, index: int) -> bool:
        """Whether the row's file has disappeared since the rows were listed."""


class Unreadable:
    """Counts the unreadable files of all sources of a run together.

    Args:
        limit: largest number of files that may be skipped.

    Attributes:
        reasons: reason by file name, in the order of occurrence.
    """

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, name: str, reason: str) -> None:
        """Counts a file.

        Raises:
            UnreadableFilesError: if there are more than the limit.
        """
        with self._lock:
            self.reasons[name] = reason
            count = len(self.reasons)
        _log.warning("skipped unreadable file %s (%s); %d so far", name, reason, count)
        if count > self.limit:
            listed = "\n".join(f"  {n}: {r}" for n, r in list(self.reasons.items()))
            raise UnreadableFilesError(
                f"{count} files cannot be read and at most {self.limit} may be "
                f"skipped (max_unreadable):\n{listed}"
            )


class Pictures:
    """A random-access source of `Record` over rows.

    Args:
        rows: the table of images and captions.
        fit: resizes the images.
        unreadable: counter of unreadable files; None for a new one.
        part: indices of the rows that belong to this source; None for all.

    Attributes:
        class_names: of the rows.
        unreadable: the counter of unreadable files.

    Raises:
        ValueError: if the source has no rows.
    """

    def __init__(
        self,
        rows: Rows,
        fit: ImageFit,
        unreadable: Unreadable | None = None,
        part: Sequence[int] | None = None,
    ) -> None:
        self._rows, self._fit = rows, fit
        self._part = range(len(rows)) if part is None else part
        self.class_names = rows.class_names
        self.unreadable = unreadable or Unreadable()
        if not self._part:
            raise ValueError("a source needs at least one image")

    def __len__(self) -> int:
        return len(self._part)

    def __repr__(self) -> str:
        many = len(self.class_names)
        return (
            f"Pictures({len(self)} records, {many} class{'es' * (many > 1)}, "
            f"{self._fit.size}x{self._fit.size} px)"
        )

    def __getitem__(self, index: int) -> Record:
        """Reads one record.

        Raises:
            IndexError: an index out of range.
            UnreadableFilesError: more images are unreadable than may be skipped.
            VanishedFileError: the file has disappeared since the rows were listed.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of a source of {len(self)}")
        for step in range(len(self)):
            record = self._read(self._part[(index + step) % len(self)])
            if record is not None:
                return record
        raise UnreadableFilesError(f"none of {len(self)} images can be read")

    def in_memory(self) -> MemorySource:
        """Reads all records into memory, without unreadable ones.

        Raises:
            UnreadableFilesError, VanishedFileError: as for a single record.
        """
        found = [record for i in self._part if (record := self._read(i)) is not None]
        if not found:
            raise UnreadableFilesError(f"none of {len(self)} images can be read")
        return MemorySource(
            np.stack([record["image"] for record in found]),
            [record["captions"] for record in found],
            [record["label"] for record in found],
            self.class_names,
            prompts=[record["prompt"] for record in found],
        )

    def _read(self, row: int) -> Record | None:
        name = self._rows.name(row)
        if name in self.unreadable.reasons:
            return None
        try:
            picture = self._rows[row]
            image = self._fit(decode(picture.data, MAX_PIXELS))
        # Decoders raise exceptions of any type for damaged files.
        except Exception as error:
            if isinstance(error, OSError) and self._rows.has_vanished(row):
                raise VanishedFileError(
                    f"{name} has been removed since the run began: restore it and "
                    "rerun the same command to resume"
                ) from error
            self.unreadable.add(name, f"{type(error).__name__}: {error}")
            return None
        return Record(
            image=image,
            text=picture.captions[0],
            captions=picture.captions,
            label=picture.label,
            prompt=picture.prompt,
        )


def hold_out(rows: Rows, shares: Mapping[str, float]) -> dict[str, list[int]]:
    """Splits rows by their own ``split``, or else by a hash of their keys.

    The split depends only on key and shares: an image keeps it when others are added,
    and all rows of one image share it.

    Args:
        rows: the table of images and captions.
        shares: share of each held-out split, such as ``{"validation": 0.1}``.

    Returns:
        Row indices of ``train``, ``validation`` and ``test``.
    """
    found: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row in range(len(rows)):
        split = rows.split(row) or held_out_split(rows.key(row), shares)
        found[split].append(row)
    return found


def sample(rows: Rows, part: Iterable[int], most: int) -> list[int]:
    """At most ``most`` of the indices, chosen by a hash of their keys, in order."""
    return sorted(sorted(part, key=lambda row: unit_hash(f"of {rows.key(row)}"))[:most])
