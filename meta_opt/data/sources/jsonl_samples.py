"""A user's own samples: a JSONL file, or WebDataset tar files.

JSONL: an object a line with the keys of `meta_opt.data.sources.sample_schema`; paths
are relative to the file. WebDataset: see `meta_opt.data.sources.webdataset`. Media are
read when asked for.
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

from meta_opt.data.sources.sample_schema import KEYS, Media, Sample, parse_fields
from meta_opt.data.sources.webdataset import COMPRESSED, read_tar
from meta_opt.text_files import read_jsonl

_log = logging.getLogger(__name__)

_JSONL = (".jsonl", ".json")
_BRACES = re.compile(r"\{([^{}]*)\}")


def is_path(name: str) -> bool:
    """Whether a name can only be meant as a path of this module's.

    >>> is_path("captions.jsonl"), is_path("shards/{00..12}.tar"), is_path("emoji")
    (True, True, False)
    """
    endings = (*_JSONL, ".tar", *COMPRESSED)
    return name.lower().endswith(endings) or "/" in name or os.sep in name


def read_samples(path: str | os.PathLike) -> list[Sample]:
    """Reads what the samples say, and where their files are.

    Keys that are not of the schema are ignored with a warning that names them.

    Args:
        path: a JSONL file, a folder of tar files, or tar files: one, a glob
            (``shards/*.tar``), or a range in braces (``shards/{0000..0099}.tar``).

    Raises:
        ValueError: a path of no such kind, a line or sample that is none (it is named),
            or no sample at all.
        FileNotFoundError: no such JSONL file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "samples.jsonl"
        >>> _ = file.write_text('{"image": "a/../b.png", "text": "all red"}')
        >>> (sample,) = read_samples(file)
        >>> sample.fields.text, sample.key
        (('all red',), 'b.png')
    """
    ignored: collections.Counter[str] = collections.Counter()
    samples = list(_samples(path, ignored))
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
    path: str | os.PathLike, ignored: collections.Counter[str]
) -> Iterator[Sample]:
    pattern, path = os.fspath(path), Path(path)
    if path.suffix.lower() in _JSONL:
        yield from _from_jsonl(path, ignored)
        return
    for tar in _tar_files(pattern):
        yield from read_tar(tar, ignored)


def _from_jsonl(path: Path, ignored: collections.Counter[str]) -> Iterator[Sample]:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    keys = _Keys(path.parent)

    def parse(value: Any, line: int) -> Sample:
        fields, unknown = parse_fields(value)
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
    """Paths of files from a folder, however a line spells them, links followed.

    Folders are followed once each: of a million files there are few.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._resolved = folder, folder.resolve()
        self._within: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The path from the folder, with slashes."""
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
        # Copies made on a Mac have ._ files beside them.
        tars = sorted(p for p in path.glob("*.tar") if not p.name.startswith("."))
    else:
        tars = _expand(pattern)
    if not tars:
        raise ValueError(
            f"{path} is not a JSONL file, a tar file or a folder of tar files"
        )
    return tars


def _expand(pattern: str) -> list[Path]:
    """Tar files that a pattern with braces and wildcards names.

    Raises:
        ValueError: a file between braces that is not there.
    """
    parts = _BRACES.split(pattern)
    choices = [_alternatives(p) if i % 2 else [p] for i, p in enumerate(parts)]
    found: list[Path] = []
    for combination in itertools.product(*choices):
        name = "".join(combination)
        # A name with brackets may be meant as it is.
        matches = [name] if Path(name).is_file() else sorted(glob.glob(name))
        if not matches and len(parts) > 1:
            raise ValueError(f"{pattern}: there is no {name}")
        # Those that are compressed are refused by name.
        found += [Path(m) for m in matches if m.endswith((".tar", *COMPRESSED))]
    return found


def _alternatives(inside: str) -> list[str]:
    """What stands between braces: ``00..12`` or ``a,b``."""
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if ends is None:
        return inside.split(",")
    first, last = ends.groups()
    return [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
