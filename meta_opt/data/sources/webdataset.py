"""WebDataset tar files as a source of a user's own samples.

In a tar file a sample is what shares a name up to the first dot: ``0001.jpg`` or
another picture, ``0001.wav`` or another sound, with ``0001.txt``, its text, or
``0001.json``, an object with the other keys of `meta_opt.data.sources.sample_schema`.
Members with other endings and hidden ones are left out. Pictures and sounds are read in
place, when asked for.
"""

import collections
import logging
import os
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from meta_opt.data.sources.sample_schema import Media, Sample, parse_fields
from meta_opt.text_files import decode_text, parse_json

_log = logging.getLogger(__name__)

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Endings of tar files that must be decompressed."""

MEDIA_ENDINGS = {
    **dict.fromkeys(
        (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"), "image"
    ),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".mp3"), "audio"),
    **dict.fromkeys((".gif", ".apng"), "video"),
}
_TEXTS = {".txt": "text", ".json": "json"}
_BEGINNINGS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_BLOCK = 512


def read_tar(path: Path, ignored: collections.Counter[str]) -> Iterator[Sample]:
    """Reads what the samples of a tar file say, and where in it their files are.

    Args:
        path: of the tar file.
        ignored: counts keys of ``.json`` members that are not of the schema.

    Raises:
        ValueError: a file that is compressed, no tar file, cut short or two in one; a
            sample that is none, or has two members for one thing. They are named.
    """
    name = path.resolve().name
    for key, members in _grouped(path).items():
        where = f"{path}: sample {key!r}"
        try:
            media = {
                kind: Media(path, member.offset_data, member.size, member.name)
                for kind, member in members.items()
                if kind in MEDIA_ENDINGS.values()
            }
            fields, unknown = parse_fields(_value(path, members))
        except ValueError as error:
            there = ", ".join(
                sorted(posixpath.basename(m.name) for m in members.values())
            )
            raise ValueError(f"{where} ({there}): {error}") from None
        ignored.update(unknown)
        first = next(iter(media.values()), None)
        own = posixpath.normpath(first.member) if first else key
        yield Sample(where, f"{name}/{own}", media, fields)


def _grouped(path: Path) -> Mapping[str, Mapping[str, tarfile.TarInfo]]:
    """Members by their sample and by what they are, in the file's order."""
    _check_not_compressed(path)
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    hidden = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, base = posixpath.split(posixpath.normpath(member.name))
                stem, dot, ending = base.partition(".")
                kind = {**MEDIA_ENDINGS, **_TEXTS}.get((dot + ending).lower())
                # Such as the ._0001.jpg that a Mac puts beside 0001.jpg.
                hidden += not stem
                if not member.isfile() or not stem or kind is None:
                    continue
                key = posixpath.join(folder, stem)
                found = samples.setdefault(key, {})
                if kind in found:
                    raise ValueError(
                        f"{path}: sample {key!r} has two members for its {kind}, "
                        f"{found[kind].name} and {member.name}; leave one of them out"
                    )
                found[kind] = member
            _check_end(path, tar.offset)
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no tar file or is cut short ({error})") from None
    if hidden:
        _log.warning("%s: left out %d hidden members", path, hidden)
    return samples


def _check_not_compressed(path: Path) -> None:
    with path.open("rb") as stream:
        beginning = stream.read(8)
    for magic, what in _BEGINNINGS.items():
        if beginning.startswith(magic):
            raise ValueError(
                f"{path} is compressed by {what}, and pictures are read in place: "
                "decompress it"
            )


def _check_end(path: Path, offset: int) -> None:
    """Raises ValueError where the mark that ends a tar file is not at the offset.

    Where a member's header is damaged or missing, `tarfile` ends without a word.
    """
    size = os.path.getsize(path)
    with path.open("rb") as stream:
        stream.seek(offset)
        end = stream.read(_BLOCK)
        if len(end) < _BLOCK:
            raise ValueError(
                f"{path} is cut short: it ends after {size:,} bytes without the mark "
                "that ends a tar file; copy or write it again"
            )
        rest = iter(lambda: stream.read(1 << 20), b"")
        if any(end) or any(any(part) for part in rest):
            raise ValueError(
                f"{path} is damaged, or several tar files in one: what comes after "
                f"byte {offset:,} cannot be read"
            )


def _value(path: Path, members: Mapping[str, tarfile.TarInfo]) -> dict[str, object]:
    """The sample as a line of a JSONL file would say it."""

    def read(kind: str) -> bytes:
        member = members[kind]
        return Media(path, member.offset_data, member.size).read()

    value: dict[str, object] = {}
    if "json" in members:
        about = parse_json(read("json"))
        if not isinstance(about, dict):
            raise ValueError("its .json is no JSON object")
        value |= about
    if "text" in members:
        value["text"] = decode_text(read("text")).strip()
        # Tools that write both have the same caption here.
        value.pop("caption", None)
    return value | {
        k: m.name for k, m in members.items() if k in MEDIA_ENDINGS.values()
    }
