"""Lists the members of a tar file on disk without unpacking them."""

import io
import os
import tarfile
from collections.abc import Generator
from pathlib import Path

MAX_MEMBERS = 10_000_000
"""Largest number of members, each of which takes some hundred bytes of memory."""
_BLOCK = 512


class _Bounded(io.BufferedReader):
    """A reader that is limited to the file's size, whatever size a header claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.path.getsize(path)

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def read_members(path: Path) -> Generator[tarfile.TarInfo, None, None]:
    """The members of a tar file, in its order.

    Args:
        path: path of the uncompressed file.

    Raises:
        ValueError: not a tar file, or one that is damaged, truncated, a concatenation
            of two, or has more than `MAX_MEMBERS`; the message names it.
    """
    end = -1
    try:
        with _Bounded(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for count, member in enumerate(tar, start=1):
                if count > MAX_MEMBERS:
                    raise tarfile.ReadError(f"more than {MAX_MEMBERS:,} members")
                # A negative size would lead to an endless loop.
                if member.size < 0 or member.offset_data <= end:
                    raise tarfile.ReadError(f"the size of {member.name!r} is below 0")
                end = member.offset_data
                # Otherwise `tarfile` keeps a kilobyte per member.
                tar.members.clear()  # type: ignore[attr-defined]
                yield member
            offset = tar.offset
    # `tarfile` reads nested headers recursively and does not check numbers.
    except (tarfile.TarError, RecursionError, OverflowError, ValueError) as error:
        problem = str(error) or type(error).__name__
        message = f"{path} is not a tar file or is cut short ({problem})"
        raise ValueError(message) from None
    _check_end(path, offset)


def _check_end(path: Path, offset: int) -> None:
    """Raises ValueError if the end-of-archive marker is not at the offset.

    `tarfile` stops silently at a damaged or missing header of a member.
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
