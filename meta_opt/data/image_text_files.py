"""A user's own pictures and captions: a JSONL file, or WebDataset tar files.

JSONL: a line a picture, ``{"image": "a/b.jpg", "text": "a caption"}``; paths are
relative to the file, ``text`` may be a list of captions, ``label`` a class name.
WebDataset: in each tar file a sample is what shares a name up to the first dot,
``0001.jpg`` with ``0001.txt``, or with ``0001.json`` that has a ``text``. Pictures are
read when asked for.
"""

import json
import logging
import tarfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from meta_opt.data.images import TooManyPixelsError, decode, fit_square
from meta_opt.data.records import Record

_log = logging.getLogger(__name__)

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 50_000_000
"""Larger pictures count as unreadable."""


class UnreadableImagesError(ValueError):
    """More pictures cannot be read than may be skipped; the message lists them."""


class _Item(NamedTuple):
    """Where a picture is: a whole file, or bytes of one."""

    file: Path
    offset: int
    size: int
    name: str
    captions: tuple[str, ...]
    label: int


class ImageTextFiles:
    """A random-access source of `Record` over files.

    A picture that cannot be read is counted, and the next one that can is given in its
    place, so that a run of hours does not end on one broken file, and is the same
    whenever it is repeated.

    Args:
        path: a JSONL file, a tar file, or a folder of tar files.
        image_size: side in pixels that pictures are fitted to, padded with white.
        max_unreadable: pictures that may be skipped.

    Attributes:
        class_names: those of the labels, sorted; one, "", where there are none.
        unreadable: name of each picture that was skipped, to the reason.

    Raises:
        ValueError: a path of neither kind, a line or sample without picture or caption
            (it is named), or no sample at all.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (4, 4), "red").save(folder / "a.png")
        >>> line = '{"image": "a.png", "text": "all red"}'
        >>> _ = (folder / "pairs.jsonl").write_text(line)
        >>> source = ImageTextFiles(folder / "pairs.jsonl", 224)
        >>> source
        ImageTextFiles(1 records, 1 class, 224x224 px)
        >>> source[0]["text"]
        'all red'
    """

    def __init__(
        self, path: str | Path, image_size: int, max_unreadable: int = 100
    ) -> None:
        path = Path(path)
        self._size, self._most = image_size, max_unreadable
        found = list(_samples(path))
        if not found:
            raise ValueError(f"{path} has no pair of a picture and a caption")
        self.class_names = tuple(sorted({label for _, label in found}))
        numbers = {name: i for i, name in enumerate(self.class_names)}
        self._items = [item._replace(label=numbers[name]) for item, name in found]
        self.captions = tuple(item.captions for item in self._items)
        self.unreadable: dict[str, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        many = len(self.class_names)
        return (
            f"ImageTextFiles({len(self)} records, {many} class{'es' * (many > 1)}, "
            f"{self._size}x{self._size} px)"
        )

    def __getitem__(self, index: int) -> Record:
        """Reads one record.

        Raises:
            IndexError: an index out of range.
            UnreadableImagesError: more pictures than may be skipped are unreadable.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of a source of {len(self)}")
        for step in range(len(self)):
            item = self._items[(index + step) % len(self)]
            if item.name in self.unreadable:
                continue
            try:
                image = fit_square(decode(_read(item), MAX_PIXELS), self._size)
            except (OSError, TooManyPixelsError, SyntaxError) as error:
                self._skip(item.name, f"{type(error).__name__}: {error}")
                continue
            return Record(image=image, text=item.captions[0], label=item.label)
        raise UnreadableImagesError(f"none of {len(self)} pictures can be read")

    def _skip(self, name: str, reason: str) -> None:
        with self._lock:
            self.unreadable[name] = reason
            count = len(self.unreadable)
        _log.warning(
            "skipped unreadable picture %s (%s); %d so far", name, reason, count
        )
        if count > self._most:
            listed = "\n".join(f"  {n}: {r}" for n, r in self.unreadable.items())
            raise UnreadableImagesError(
                f"{count} pictures cannot be read and at most {self._most} may be "
                f"skipped (max_unreadable):\n{listed}"
            )


def _samples(path: Path) -> Iterator[tuple[_Item, str]]:
    """Items, and the name of each one's label."""
    if path.suffix in (".jsonl", ".json") and path.is_file():
        yield from _from_jsonl(path)
    elif path.suffix == ".tar" and path.is_file():
        yield from _from_tar(path)
    elif path.is_dir() and (tars := sorted(path.glob("*.tar"))):
        for tar in tars:
            yield from _from_tar(tar)
    else:
        raise ValueError(
            f"{path} is no JSONL file, no tar file and no folder of tar files"
        )


def _from_jsonl(path: Path) -> Iterator[tuple[_Item, str]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                name, captions = value["image"], _captions(value["text"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: needs a JSON object with `image` and a "
                    f"`text` that is not empty ({type(error).__name__}: {error})"
                ) from None
            file = path.parent / name
            yield _Item(file, 0, -1, name, captions, 0), str(value.get("label", ""))


def _from_tar(path: Path) -> Iterator[tuple[_Item, str]]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    texts: dict[str, dict[str, Any]] = {}
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
    for key, members in samples.items():
        pictures = [members[e] for e in _IMAGES if e in members]
        if not pictures or "text" not in texts.get(key, {}):
            raise ValueError(
                f"{path}: sample {key.lstrip('/')!r} has {', '.join(sorted(members))}; "
                "it needs a picture and a .txt, or a .json with `text`"
            )
        picture, about = pictures[0], texts[key]
        name = f"{path.name}/{picture.name}"
        yield (
            _Item(path, picture.offset_data, picture.size, name, about["text"], 0),
            str(about.get("label", "")),
        )


def _text(
    tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str, path: Path
) -> dict[str, Any]:
    stream = tar.extractfile(member)
    assert stream is not None  # it is a file
    data = stream.read().decode("utf-8")
    try:
        about = {"text": data.strip()} if ending == ".txt" else json.loads(data)
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


def _read(item: _Item) -> bytes:
    with item.file.open("rb") as stream:
        stream.seek(item.offset)
        return stream.read(item.size)
