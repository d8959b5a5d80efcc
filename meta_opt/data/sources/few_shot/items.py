"""Images with classes from a user's folders, JSONL or WebDataset files, or a table."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from meta_opt.data.preprocessing.images import (
    content_box,
    decode,
    fit_width,
    render_drawing,
    render_svg,
    shrink,
)
from meta_opt.data.preprocessing.pictures import MAX_PIXELS
from meta_opt.data.sources.class_folders import (
    class_folders,
    is_folder_of_tar_files,
    visible_files,
)
from meta_opt.data.sources.jsonl_samples import is_path, read_samples
from meta_opt.data.sources.video_annotations.annotation_files import read_table
from meta_opt.data.sources.webdataset import COMPRESSED
from meta_opt.data.splits import named_split
from meta_opt.metrics.category_answers import CategoryParser
from meta_opt.text_files import decode_text
from meta_opt.types import near_match

MAX_ASPECT = 20
"""Largest ratio of height to width; taller images count as unreadable, since resized to
a given width they could be of any size."""
_PREVIEW_SIDE = 256
_DIVIDED = (
    "The protocol makes its own splits: give it one set of pictures without splits, "
    "and leave out those of a test set"
)
_SVG = ".svg"
_TABLES = (".csv", ".tsv")
_FILES = (".jsonl", ".json", ".tar", *COMPRESSED)
_COLUMNS = ("image", "category")
"""Default columns of a table: image and class."""


@dataclasses.dataclass(frozen=True)
class Item:
    """An image and its class.

    Attributes:
        key: unique key, whose hash decides order and split.
        class_name: original name of its class.
        read: returns the file's bytes; raises OSError if it cannot be read.
        is_svg: whether the file is an SVG document.
    """

    key: str
    class_name: str
    read: Callable[[], bytes]
    is_svg: bool = False

    def preview(self) -> Image.Image:
        """The image at most 256 pixels large, for near-duplicate detection.

        Raises:
            OSError, ValueError: if it cannot be read, is a blank drawing, or more than
                `MAX_ASPECT` times as high as wide.
        """
        data = self.read()
        if not self.is_svg:
            image = shrink(decode(data, MAX_PIXELS), _PREVIEW_SIDE)
            _check_aspect(image.width, image.height)
            return image
        page = render_svg(decode_text(data), _PREVIEW_SIDE)
        box = content_box(page)
        if box is None:
            raise ValueError("the drawing is empty, or white")
        _check_aspect(box[2] - box[0], box[3] - box[1])
        return page

    def at_width(self, width: int) -> Image.Image:
        """The image at most ``width`` pixels wide, aspect kept.

        A drawing is rendered at that width, without its page's margins; a raster image
        is downscaled, never enlarged.

        Raises:
            OSError, ValueError: if it cannot be read.
        """
        data = self.read()
        if self.is_svg:
            return render_drawing(decode_text(data), width)
        return fit_width(decode(data, MAX_PIXELS), width)


def _check_aspect(width: int, height: int) -> None:
    if height > MAX_ASPECT * width:
        raise ValueError(f"it is more than {MAX_ASPECT} times as high as wide")


def read_items(
    path: str | os.PathLike,
    image_column: str = _COLUMNS[0],
    class_column: str = _COLUMNS[1],
) -> list[Item]:
    """Finds a user's images and their classes.

    Args:
        path: a folder with a folder of images for each class, at any depth below it;
            a JSONL file or WebDataset tar files whose samples have an ``image`` and a
            ``label`` (`meta_opt.data.sources.sample_schema`); or a table, ``.csv``
            (commas, or semicolons) or ``.tsv``, of which two columns are read. Paths in
            a file are relative to it.
        image_column: column of a table with the paths of images.
        class_column: column of a table with the names of classes.

    Returns:
        An item for each image, in the order of their keys.

    Raises:
        ValueError: a folder without classes, a class without images, a malformed file
            or one of another kind, column names without a table or equal ones, a sample
            without image or class or with a split, a URL instead of a path, or one
            image in two classes. The message says what and where.
        FileNotFoundError: the file or folder does not exist.
    """
    folder = Path(path)
    ending = folder.suffix.lower()
    if ending not in _TABLES and (image_column, class_column) != _COLUMNS:
        raise ValueError(
            f"image_column={image_column!r}, class_column={class_column!r}: {path} is "
            f"not a table ({', '.join(_TABLES)}), so it has no columns; leave them out"
        )
    if ending in _TABLES:
        found = _from_table(folder, image_column, class_column)
    elif folder.is_file() and not folder.name.lower().endswith(_FILES):
        raise ValueError(
            f"{path} is of no kind that is read: give a folder with a folder of images "
            f"for each class, or a file .jsonl, .tar, {', '.join(_TABLES)}; save a "
            "spreadsheet as .csv, and unpack archives"
        )
    elif folder.is_dir() and not is_folder_of_tar_files(folder, _endings()):
        found = _from_folder(folder)
    elif folder.exists() or (is_path(os.fspath(path)) and not folder.suffix == ""):
        found = _from_samples(path)
    else:
        raise FileNotFoundError(
            f"there is no {path}; give a folder with a folder of images for each "
            "class, a JSONL file or a table"
        )
    items = _unique(found)
    if not items:
        raise ValueError(f"{path} names no image")
    return items


def _from_folder(root: Path) -> Iterable[Item]:
    folders = class_folders(root)
    if not folders:
        raise ValueError(
            f"{root} has no folders; put the images of each class in a folder of its "
            f"own, {root.name}/CLASS/PICTURE.jpg"
        )
    splits = [p.name for p in folders if named_split(p.name) and class_folders(p)]
    if len({named_split(name) for name in splits}) > 1 or len(splits) == len(folders):
        names = ", ".join(splits)
        raise ValueError(f"{root} has folders of splits ({names}). {_DIVIDED}")
    endings = _endings()
    for folder in folders:
        files = [p for p in visible_files(folder) if p.suffix.lower() in endings]
        if not files:
            raise ValueError(
                f"the class folder {folder} has no image of a kind that can be read; "
                "add some, or move the folder away"
            )
        for file in files:
            key = file.relative_to(root).as_posix()
            yield _file_item(key, folder.name, file)


def _endings() -> set[str]:
    """Suffixes of the files of images."""
    return {*Image.registered_extensions(), _SVG}


def _file_item(key: str, class_name: str, file: Path) -> Item:
    return Item(key, class_name, file.read_bytes, file.suffix.lower() == _SVG)


def _from_samples(path: str | os.PathLike) -> Iterable[Item]:
    for sample in read_samples(path):
        media = sample.media.get("image")
        if media is None or sample.fields.label is None:
            missing = "label" if media else "image"
            raise ValueError(
                f"{sample.where}: needs an `image` and a `label`; it has no `{missing}`"
            )
        if sample.fields.split is not None:
            raise ValueError(f"{sample.where}: has a `split`. {_DIVIDED}")
        is_svg = (media.member or media.file.name).lower().endswith(_SVG)
        yield Item(sample.key, sample.fields.label, media.read, is_svg)


def _from_table(path: Path, image_column: str, class_column: str) -> Iterable[Item]:
    if image_column == class_column:
        raise ValueError(
            f"image_column and class_column are both {image_column!r}; name two "
            f"columns of {path}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    delimiter = _delimiter(path)
    for row in read_table(path, [image_column, class_column], delimiter):
        name, class_name = row.text(image_column), row.text(class_column)
        if "://" in name:
            raise ValueError(
                f"{row.where}: {name} is a URL; nothing is downloaded: give paths "
                "of files"
            )
        for column in ("split", "Split", "SPLIT"):
            if column in row and named_split(row.value(column)) is not None:
                raise ValueError(f"{row.where}: has a column `{column}`. {_DIVIDED}")
        key = Path(os.path.normpath(name)).as_posix()
        yield _file_item(key, class_name, path.parent / name)


def _delimiter(path: Path) -> str:
    """The character between the cells of a table.

    Spreadsheets write semicolons in ``.csv`` in locales with a decimal comma.
    """
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open("rb") as file:
        header = next((line for line in file if line.strip()), b"")
    return ";" if b";" in header and b"," not in header else ","


def _unique(items: Iterable[Item]) -> list[Item]:
    """Removes duplicate keys and sorts by key."""
    found: dict[str, Item] = {}
    for item in items:
        other = found.setdefault(item.key, item)
        if other.class_name != item.class_name:
            raise ValueError(
                f"the image {item.key} is in two classes, {other.class_name!r} and "
                f"{item.class_name!r}"
            )
    return [found[key] for key in sorted(found)]


def by_class(
    items: Sequence[Item], classes: Sequence[str] = ()
) -> dict[str, list[Item]]:
    """Groups items by class, in the order of the classes' names.

    Args:
        items: items of all classes.
        classes: names of the classes to keep; empty for all.

    Raises:
        ValueError: class names that differ only in case, spaces, quotes or Unicode
            form, so that answers would be ambiguous; a name without letters; fewer than
            two classes; or a requested class that does not exist.

    Example:
        >>> items = [Item(key, key[0], bytes) for key in ("a/1", "b/1", "a/2")]
        >>> {name: len(found) for name, found in by_class(items).items()}
        {'a': 2, 'b': 1}
    """
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.class_name, []).append(item)
    # Answers must identify classes unambiguously.
    CategoryParser(sorted(found))
    found = {name.strip(): of_class for name, of_class in found.items()}
    for name in classes:
        if name not in found:
            raise ValueError(
                f"no class {name!r}{near_match(name, found)} (classes: "
                f"{', '.join(sorted(found))})"
            )
    chosen = sorted(classes or found)
    if len(chosen) < 2:
        raise ValueError(
            f"{len(chosen)} class{'es' * (not chosen)} {chosen}; at least two are "
            "needed"
        )
    return {name: found[name] for name in chosen}
