"""Folders with one sub-folder of files per class, or with tar files."""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

from meta_opt.error_messages import first_few

_log = logging.getLogger(__name__)


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


def tar_files(folder: Path) -> list[Path]:
    """Sorted tar files of a folder, without hidden ones, such as copies from macOS."""
    return sorted(p for p in folder.glob("*.tar") if not _is_hidden(p.name))


def is_folder_of_tar_files(folder: Path, endings: Collection[str]) -> bool:
    """Whether a folder is read as WebDataset tar files, not as folders of classes.

    Tar files beside folders with media files, such as an archive of the same images,
    are left out with a warning.

    Args:
        folder: the folder.
        endings: suffixes of media files, in lower case.

    Raises:
        ValueError: tar files and media files in the same folder, either of which may be
            the data.
    """
    tars = tar_files(folder)
    if not tars:
        return False
    named = first_few((p.name for p in tars), 3)

    def is_media(file: Path) -> bool:
        return file.suffix.lower() in endings

    for sub in class_folders(folder):
        if any(map(is_media, visible_files(sub))):
            _log.warning(
                "%s has folders of classes, such as %s, which are read; the tar files "
                "beside them are not: %s",
                *(folder, sub.name, named),
            )
            return False
    beside = sorted(p.name for p in folder.iterdir() if p.is_file() and is_media(p))
    beside = [name for name in beside if not _is_hidden(name)]
    if beside:
        raise ValueError(
            f"{folder} has tar files ({named}) and media files (such as {beside[0]}); "
            f"name the tar files, {folder}/*.tar, or move one kind to a folder of its "
            "own"
        )
    return True


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or was made by software.

    Examples are ``.thumbnails``, notebook checkpoints, ``__MACOSX`` in archives and
    ``@eaDir`` on network storage.
    """
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")
