"""A user's own samples: a JSONL file, or WebDataset tar files.

JSONL: one object per line with the keys of `meta_opt.data.sources.sample_schema`; paths
are relative to the file. WebDataset: see `meta_opt.data.sources.webdataset`. Media
files are read on access.
"""

import collections
import glob
import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from meta_opt.data.sources.class_folders import tar_files
from meta_opt.data.sources.sample_schema import KEYS, Media, Sample, parse_fields
from meta_opt.data.sources.webdataset import COMPRESSED, read_tar
from meta_opt.text_files import read_jsonl

_log = logging.getLogger(__name__)

_JSONL = (".jsonl", ".json")
_BRACES = re.compile(r"\{([^{}]*)\}")


def is_path(name: str) -> bool:
    """Whether a name denotes a path that this module reads, rather than a data set.

    >>> is_path("captions.jsonl"), is_path("shards/{00..12}.tar"), is_path("emoji")
    (True, True, False)
    """
    endings = (*_JSONL, ".tar", *COMPRESSED)
    return name.lower().endswith(endings) or "/" in name or os.sep in name


def read_samples(path: str | os.PathLike, asked: bool = True) -> list[Sample]:
    """Reads the fields of samples and the locations of their media files.

    Unknown keys are ignored with a warning that lists them.

    Args:
        path: a JSONL file, a folder of tar files, or tar files: one, a glob
            (``shards/*.tar``), or a range in braces (``shards/{0000..0099}.tar``).
        asked: whether a prompt needs a target; not so for samples to predict.

    Raises:
        ValueError: an unsupported path, an invalid line or sample (the message names
            it), or no sample at all.
        FileNotFoundError: the file or folder does not exist, or no file matches.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "samples.jsonl"
        >>> _ = file.write_text('{"image": "a/../b.png", "text": "all red"}')
        >>> (sample,) = read_samples(file)
        >>> sample.fields.text, sample.key
        (('all red',), 'b.png')
    """
    ignored: collections.Counter[str] = collections.Counter()
    samples = list(_samples(path, ignored, asked))
    if not samples:
        raise ValueError(f"{path} has no sample")
    if ignored:
        _log.warning(
            "%s: ignored the keys %s (those that are read: %s)",
            path,
            ", ".join(f"{key!r} ({n} times)" for key, n in ignored.most_common()),
            ", ".join(KEYS),
        )
    return samples


def _samples(
    path: str | os.PathLike, ignored: collections.Counter[str], asked: bool
) -> Iterator[Sample]:
    pattern, path = os.fspath(path), Path(path)
    if path.suffix.lower() in _JSONL:
        yield from _from_jsonl(path, ignored, asked)
        return
    for tar in _tar_files(pattern):
        yield from read_tar(tar, ignored, asked)


def _from_jsonl(
    path: Path, ignored: collections.Counter[str], asked: bool
) -> Iterator[Sample]:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    keys = _Keys(path.parent)

    def parse(value: Any, line: int) -> Sample:
        fields, unknown = parse_fields(value, asked)
        ignored.update(unknown)
        media = {kind: Media(path.parent / name) for kind, name in fields.files.items()}
        first = next(iter(fields.files.values()), None)
        if first is None:
            key = fields.text[0] if fields.text else fields.prompt
        else:
            key = keys.of(first)
        return Sample(f"{path}, line {line}", key, media, fields)

    return read_jsonl(path, parse)


class _Keys:
    """Normalised paths of files relative to a folder, with symbolic links resolved.

    Each folder is resolved once, since even a million files have few folders.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._resolved = folder, folder.resolve()
        self._within: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The path relative to the folder, with forward slashes."""
        head, tail = os.path.split(name)
        plain = tail not in ("", os.curdir, os.pardir)
        if not plain or os.path.islink(os.path.join(self._folder, name)):
            return self._follow(name)
        if head not in self._within:
            self._within[head] = self._follow(head)
        within = self._within[head]
        return tail if within == os.curdir else f"{within}/{tail}"

    def _follow(self, name: str) -> str:
        followed = (self._folder / name).resolve()
        return Path(os.path.relpath(followed, self._resolved)).as_posix()


def _tar_files(pattern: str) -> Sequence[Path]:
    path = Path(pattern)
    if path.is_dir():
        tars = tar_files(path)
    else:
        tars = _expand(pattern)
    if not tars:
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {pattern}")
        raise ValueError(
            f"{path} is not a JSONL file, a tar file or a folder of tar files"
        )
    return tars


def _expand(pattern: str) -> list[Path]:
    """Tar files that match a pattern with braces and wildcards.

    Raises:
        ValueError: a file of the braces is missing.
    """
    parts = _BRACES.split(pattern)
    choices = [_alternatives(p) if i % 2 else [p] for i, p in enumerate(parts)]
    found: list[Path] = []
    for combination in itertools.product(*choices):
        name = "".join(combination)
        # A name with brackets may be literal.
        matches = [name] if Path(name).is_file() else sorted(glob.glob(name))
        if not matches and len(parts) > 1:
            raise ValueError(f"{pattern}: there is no {name}")
        # Compressed files are rejected later, by name.
        found += [Path(m) for m in matches if m.endswith((".tar", *COMPRESSED))]
    return found


def _alternatives(inside: str) -> list[str]:
    """Expands the inside of braces: ``00..12`` or ``a,b``."""
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if ends is None:
        return inside.split(",")
    first, last = ends.groups()
    return [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
