"""The bundled shard: about 2,000 titled Open Clip Art drawings, 64 pixels square."""

import functools
import hashlib
import io
import zipfile
from pathlib import Path

from meta_opt.data.bundled import BUNDLED
from meta_opt.data.records import MemorySource, check_split
from meta_opt.data.sources.selection import Described, captions
from meta_opt.data.zip_members import ZIP_ERRORS, read_member
from meta_opt.text_files import parse_json, read_json

SHARD_NAME = "openclipart64.zip"
SIZE = 64
"""Side of the images in pixels."""


class DamagedShardError(ValueError):
    """The shard's contents do not match the hash in its JSON file."""


@functools.cache
def bundled_clipart(split: str) -> MemorySource:
    """Returns a split of the bundled drawings.

    Records are ``image`` uint8 [64, 64, 3] on white, ``text`` the title, ``label`` the
    category, an index into the source's ``class_names``. The images are decoded once
    per process, and the same object is returned each time. No image or title is in two
    splits.

    Args:
        split: ``train``, ``validation`` or ``test``.

    Returns:
        An in-memory source.

    Raises:
        ValueError: if there is no such split.
        DamagedShardError: if the shard does not match its recorded hash.
        FileNotFoundError: if the shard is missing.

    >>> bundled_clipart("test").class_names[0]
    'animals'
    """
    return read_shard(BUNDLED, split)


def read_shard(folder: Path, split: str) -> MemorySource:
    """Reads a split of the shard in ``folder``; see :func:`bundled_clipart`."""
    check_split(split)
    data, description = _verified(folder)
    shard = folder / SHARD_NAME
    try:
        class_names = description["class_names"]
        if not isinstance(class_names, list):
            raise ValueError("class_names is not a list")
        return _source(data, class_names, split)
    # The hash does not protect against changes of both files, so check the contents.
    except (*ZIP_ERRORS, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedShardError(
            f"{shard} is damaged ({type(error).__name__}: {error})"
        ) from error


def _source(data: bytes, class_names: list[str], split: str) -> MemorySource:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        lines = read_member(archive, "metadata.jsonl").splitlines()
        rows = [row for line in lines if (row := parse_json(line))["split"] == split]
        pictures = [read_member(archive, row["file"]) for row in rows]
    return MemorySource(
        pictures,
        [
            captions(Described(r["path"], r["title"], tuple(r["keywords"])))
            for r in rows
        ],
        [class_names.index(row["category"]) for row in rows],
        class_names,
        image_size=SIZE,
        keys=[row["path"] for row in rows],
    )


def _verified(folder: Path) -> tuple[bytes, dict]:
    """Returns the shard's bytes and its description after checking the hash."""
    shard = folder / SHARD_NAME
    description = read_json(shard.with_suffix(".json"))
    data = shard.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != description.get("sha256"):
        raise DamagedShardError(
            f"{shard} is damaged: its SHA-256 is {found} but {shard.stem}.json records "
            f"{description.get('sha256')}. Reinstall the package or check the file out "
            "again."
        )
    return data, description
