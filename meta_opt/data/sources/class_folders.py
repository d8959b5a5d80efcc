"""A folder with a sub-folder of files for each class, as users keep them."""

from collections.abc import Iterator
from pathlib import Path


def class_folders(root: Path) -> list[Path]:
    """Sub-folders, sorted; none hidden, and none whose name begins with ``_``."""
    return [
        path
        for path in sorted(root.iterdir())
        if path.is_dir() and not (_is_hidden(path.name) or path.name.startswith("_"))
    ]


def visible_files(folder: Path) -> Iterator[Path]:
    """Files at any depth below a folder, sorted; none hidden or in a hidden folder."""
    for file in sorted(folder.rglob("*")):
        hidden = any(map(_is_hidden, file.relative_to(folder).parts))
        if not hidden and file.is_file():
            yield file


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's own.

    Such as ``.thumbnails``, notebooks' checkpoints, the ``__MACOSX`` of archives and
    the ``@eaDir`` of network storage.
    """
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")
