"""Folders with one sub-folder of files per class."""

from collections.abc import Iterator
from pathlib import Path


def class_folders(root: Path) -> list[Path]:
    """Sorted sub-folders, without hidden ones and names that begin with ``_``."""
    return [
        path
        for path in sorted(root.iterdir())
        if path.is_dir() and not (_is_hidden(path.name) or path.name.startswith("_"))
    ]


def visible_files(folder: Path) -> Iterator[Path]:
    """Sorted files at any depth below a folder, without hidden files and folders."""
    for file in sorted(folder.rglob("*")):
        hidden = any(map(_is_hidden, file.relative_to(folder).parts))
        if not hidden and file.is_file():
            yield file


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or was made by software.

    Examples are ``.thumbnails``, notebook checkpoints, ``__MACOSX`` in archives and
    ``@eaDir`` on network storage.
    """
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")
