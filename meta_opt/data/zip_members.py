"""Members of zip files, in memory and within limits."""

import struct
import zipfile
import zlib

MAX_BYTES = 1 << 30
"""A member that is larger unpacked is refused: a few kilobytes can say gigabytes."""
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError),
    *(RuntimeError, UnicodeDecodeError, IndexError, struct.error),
)
"""What `zipfile` raises for files that are damaged, encrypted or of unknown methods."""


def read_member(archive: zipfile.ZipFile, name: str | zipfile.ZipInfo) -> bytes:
    """The bytes of a member.

    Args:
        archive: the open file.
        name: of the member, or its entry.

    Raises:
        zipfile.BadZipFile: one with more than `MAX_BYTES`, or that is not there; and
            others of `ZIP_ERRORS`.
    """
    try:
        member = archive.getinfo(name) if isinstance(name, str) else name
    except KeyError:
        raise zipfile.BadZipFile(f"it has no {name}") from None
    if member.file_size > MAX_BYTES:
        raise zipfile.BadZipFile(
            f"{member.filename} has {member.file_size:,} bytes, more than {MAX_BYTES:,}"
        )
    # It ends at the size that the entry says, and checks the sum of what was read.
    return archive.read(member)
