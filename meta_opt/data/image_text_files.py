"""A user's own pictures and captions: a JSONL file, or WebDataset tar files.

JSONL: a line a picture, ``{"image": "a/b.jpg", "text": "a caption"}``; paths are
relative to the file, ``text`` may be a list of captions, ``label`` a class name,
``prompt`` what is asked about the picture, and ``text`` then the answer.
WebDataset: in each tar file a sample is what shares a name up to the first dot,
``0001.jpg`` with ``0001.txt``, or with ``0001.json`` that has a ``text``. Pictures are
read when asked for.
"""

import glob
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from meta_opt.data.jsonl import read_jsonl
from meta_opt.data.pictures import Picture

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_JSONL = (".jsonl", ".json")
_BRACES = re.compile(r"\{([^{}]*)\}")


class _Item(NamedTuple):
    """Where a picture is: a whole file, or bytes of one."""

    file: Path
    offset: int
    size: int
    key: str
    captions: tuple[str, ...]
    label: str
    prompt: str


class ImageTextFiles:
    """Rows of `meta_opt.data.pictures.Pictures` over files.

    Args:
        path: a JSONL file, a folder of tar files, or tar files: one, a glob
            (``shards/*.tar``), or a range in braces (``shards/{0000..0099}.tar``).

    Attributes:
        class_names: those of the labels, sorted; one, "", where there are none.
        captions: of each picture.

    Raises:
        ValueError: a path of no such kind, a line or sample without picture or caption
            (it is named), or no sample at all.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> line = '{"image": "a.png", "text": "all red"}'
        >>> _ = (folder / "pairs.jsonl").write_text(line)
        >>> rows = ImageTextFiles(folder / "pairs.jsonl")
        >>> len(rows), rows.captions[0], rows.key(0)
        (1, ('all red',), 'a.png')
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._items = list(_samples(path))
        if not self._items:
            raise ValueError(f"{path} has no pair of a picture and a caption")
        self.class_names = tuple(sorted({item.label for item in self._items}))
        self._labels = {name: i for i, name in enumerate(self.class_names)}
        self.captions = tuple(item.captions for item in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Picture:
        """Reads a row.

        Raises:
            OSError: if the file is not there or cannot be read.
        """
        item = self._items[index]
        with item.file.open("rb") as stream:
            stream.seek(item.offset)
            data = stream.read(item.size)
        return Picture(data, item.captions, self._labels[item.label], item.prompt)

    def key(self, index: int) -> str:
        """The picture's path as its JSONL has it, or tar file and member."""
        return self._items[index].key

    def name(self, index: int) -> str:
        """The picture's path, or that of the tar file with the member."""
        item = self._items[index]
        return str(item.file if item.size < 0 else item.file.parent / item.key)


def is_path(name: str) -> bool:
    """Whether a name can only be meant as a path of this module's.

    >>> is_path("captions.jsonl"), is_path("shards/{00..12}.tar"), is_path("emoji")
    (True, True, False)
    """
    return name.endswith((*_JSONL, ".tar")) or "/" in name or os.sep in name


def _samples(path: str | os.PathLike) -> Iterator[_Item]:
    pattern, path = os.fspath(path), Path(path)
    if path.suffix in _JSONL and path.is_file():
        yield from _from_jsonl(path)
        return
    tars = sorted(path.glob("*.tar")) if path.is_dir() else _expand(pattern)
    if not tars:
        raise ValueError(
            f"{path} is no JSONL file, no tar file and no folder of tar files"
        )
    for tar in tars:
        yield from _from_tar(tar)


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
        found += [Path(m) for m in matches if m.endswith(".tar")]
    return found


def _alternatives(inside: str) -> list[str]:
    """What stands between braces: ``00..12`` or ``a,b``."""
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if ends is None:
        return inside.split(",")
    first, last = ends.groups()
    return [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]


def _from_jsonl(path: Path) -> Iterator[_Item]:
    def parse(value: Any) -> _Item:
        try:
            name, captions = value["image"], _captions(value["text"])
            file = path.parent / name
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                "needs a JSON object with `image` and a `text` that is not empty "
                f"({type(error).__name__}: {error})"
            ) from None
        rest = (str(value.get(key, "")) for key in ("label", "prompt"))
        return _Item(file, 0, -1, name, captions, *rest)

    return read_jsonl(path, parse)


def _from_tar(path: Path) -> Iterator[_Item]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    texts: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, dot, ending = base.partition(".")
                key, ending = f"{folder}/{stem}", (dot + ending).lower()
                samples.setdefault(key, {})[ending] = member
                if ending in (".txt", ".json"):
                    texts.setdefault(key, {}).update(_text(tar, member, ending, path))
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no tar file or is cut short ({error})") from None
    for key, members in samples.items():
        pictures = [members[e] for e in _IMAGES if e in members]
        if not pictures or "text" not in texts.get(key, {}):
            raise ValueError(
                f"{path}: sample {key.lstrip('/')!r} has {', '.join(sorted(members))}; "
                "it needs a picture and a .txt, or a .json with `text`"
            )
        picture, about = pictures[0], texts[key]
        name = f"{path.name}/{picture.name}"
        rest = (str(about.get(key, "")) for key in ("label", "prompt"))
        offset = picture.offset_data
        yield _Item(path, offset, picture.size, name, about["text"], *rest)


def _text(
    tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str, path: Path
) -> dict[str, Any]:
    stream = tar.extractfile(member)
    assert stream is not None  # it is a file
    data = stream.read()
    try:
        text = data.decode("utf-8")
        about = {"text": text.strip()} if ending == ".txt" else json.loads(text)
        if "text" in about:
            about["text"] = _captions(about["text"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {member.name} is no caption ({error})") from None
    return about


def _captions(text: Any) -> tuple[str, ...]:
    captions: Sequence[Any] = [text] if isinstance(text, str) else list(text)
    if not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise ValueError("an empty caption")
    return tuple(captions)
