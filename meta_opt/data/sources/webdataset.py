"""Reads a user's own samples from WebDataset tar files.

The members of a sample share a name up to the first dot: ``0001.jpg`` or another image,
``0001.wav`` or another audio file, with ``0001.txt``, its text, or ``0001.json``, an
object with the other keys of `meta_opt.data.sources.sample_schema`. Members with other
extensions and hidden ones are ignored. Media are read in place, on access.
"""

import collections
import contextlib
import logging
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path

from meta_opt.data.sources.sample_schema import Media, Sample, parse_fields
from meta_opt.data.sources.tar_members import read_members
from meta_opt.text_files import decode_text, parse_json

_log = logging.getLogger(__name__)

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Extensions of compressed tar files."""

MEDIA_ENDINGS = {
    **dict.fromkeys(
        (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"), "image"
    ),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".mp3"), "audio"),
    **dict.fromkeys((".gif", ".apng"), "video"),
}
_TEXTS = {".txt": "text", ".json": "json"}
_ENDINGS = {**MEDIA_ENDINGS, **_TEXTS}
_BEGINNINGS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def read_tar(
    path: Path, ignored: collections.Counter[str], asked: bool = True
) -> Iterator[Sample]:
    """Reads the fields of a tar file's samples and the locations of their media.

    Args:
        path: path of the tar file.
        ignored: counter of unknown keys of ``.json`` members.
        asked: whether a prompt needs a target.

    Raises:
        ValueError: a compressed file, not a tar file, or one that is truncated or a
            concatenation of two; an invalid sample, or one with two members for the
            same key. The message names them.
    """
    name = path.resolve().name
    for key, members in _grouped(path).items():
        where = f"{path}: sample {key!r}"
        try:
            media = {
                kind: member
                for kind, member in members.items()
                if kind in MEDIA_ENDINGS.values()
            }
            fields, unknown = parse_fields(_value(members), asked)
        except ValueError as error:
            there = ", ".join(
                sorted(posixpath.basename(m.member) for m in members.values())
            )
            raise ValueError(f"{where} ({there}): {error}") from None
        ignored.update(unknown)
        first = next(iter(media.values()), None)
        own = posixpath.normpath(first.member) if first else key
        yield Sample(where, f"{name}/{own}", media, fields)


def _grouped(path: Path) -> Mapping[str, Mapping[str, Media]]:
    """Members by sample and by key, in the order of the file."""
    _check_not_compressed(path)
    samples: dict[str, dict[str, Media]] = {}
    hidden = 0
    # Close the file explicitly, since an invalid sample leaves members unread.
    with contextlib.closing(read_members(path)) as members:
        for member in members:
            folder, base = posixpath.split(posixpath.normpath(member.name))
            stem, dot, ending = base.partition(".")
            kind = _ENDINGS.get((dot + ending).lower())
            # Such as ._0001.jpg, which macOS puts beside 0001.jpg.
            hidden += not stem
            if not member.isfile() or not stem or kind is None:
                continue
            key = posixpath.join(folder, stem)
            found = samples.setdefault(key, {})
            if kind in found:
                raise ValueError(
                    f"{path}: sample {key!r} has two members for its {kind}, "
                    f"{found[kind].member} and {member.name}; leave one of them out"
                )
            found[kind] = Media(path, member.offset_data, member.size, member.name)
    if hidden:
        _log.warning("%s: left out %d hidden members", path, hidden)
    return samples


def _check_not_compressed(path: Path) -> None:
    with path.open("rb") as stream:
        beginning = stream.read(8)
    for magic, what in _BEGINNINGS.items():
        if beginning.startswith(magic):
            raise ValueError(
                f"{path} is compressed by {what}, and images are read in place: "
                "decompress it"
            )


def _value(members: Mapping[str, Media]) -> dict[str, object]:
    """The sample as the JSON object of a line in a JSONL file."""
    value: dict[str, object] = {}
    if "json" in members:
        about = parse_json(members["json"].read())
        if not isinstance(about, dict):
            raise ValueError("its .json is not a JSON object")
        value |= about
    if "text" in members:
        value["text"] = decode_text(members["text"].read()).strip()
        # Tools that write both files repeat the caption here.
        value.pop("caption", None)
    return value | {
        k: m.member for k, m in members.items() if k in MEDIA_ENDINGS.values()
    }
