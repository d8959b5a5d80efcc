"""Reads members of zip files into memory, with a size limit."""

import struct
import zipfile
import zlib

MAX_BYTES = 1 << 30
"""Largest unpacked size of a member, as protection against zip bombs."""
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError),
    *(RuntimeError, UnicodeDecodeError, IndexError, struct.error),
)
"""Exceptions of `zipfile` for damaged or encrypted files and unknown methods."""


def read_member(archive: zipfile.ZipFile, name: str | zipfile.ZipInfo) -> bytes:
    """Reads the contents of a member.

    Args:
        archive: the open file.
        name: name of the member, or its entry.

    Raises:
        zipfile.BadZipFile: a missing member, or one with more than `MAX_BYTES`; and
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
    # Reading stops at the size in the entry and verifies the checksum.
    return archive.read(member)
