"""Sources of the images of a few-shot data set."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.sources.few_shot import clipart
from meta_opt.data.sources.few_shot.files import write_dataset
from meta_opt.data.sources.few_shot.items import Item, by_class, read_items
from meta_opt.data.sources.few_shot.protocol import FewShotConfig
from meta_opt.types import check_distinct

NAMES = ("openclipart", "bundled")
"""Built-in sources; every other name is a path."""


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Source of images and their classes.

    Attributes:
        name: ``openclipart``, the library as packaged by Debian, 30 classes;
            ``bundled``, the bundled drawings, 16 classes; or a path: a folder with a
            sub-folder for each class, a JSONL file, or a table (`read_items`).
        data_dir: folder of datasets, for ``openclipart``; None for
            `meta_opt.data.data_dir`.
        image_column: column of a table with the paths of images.
        class_column: column of a table with the names of classes.
        classes: names of the classes to keep; empty for all.
    """

    name: str
    data_dir: str | None = None
    image_column: str = "image"
    class_column: str = "category"
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for an empty source name, and for duplicate classes."""
        if not self.name:
            raise ValueError(
                f"data.name is empty: name a folder, a JSONL file, a table, or one of "
                f"{', '.join(NAMES)}"
            )
        check_distinct("data.classes", self.classes)


def read_classes(config: SourceConfig) -> dict[str, list[Item]]:
    """The items of each class.

    Raises:
        ValueError, FileNotFoundError: see `read_items` and `by_class`.
        MissingDataError: missing packages; the message has the command that fetches
            them.
    """
    if config.name == "openclipart":
        items = clipart.openclipart_items(Path(config.data_dir or default_data_dir()))
    elif config.name == "bundled":
        items = clipart.bundled_items()
    else:
        items = read_items(config.name, config.image_column, config.class_column)
    return by_class(items, config.classes)


def build(
    source: SourceConfig, protocol: FewShotConfig, out: str | os.PathLike
) -> Mapping[str, Any]:
    """Reads the images and writes the data set: `read_classes`, `write_dataset`."""
    return write_dataset(out, read_classes(source), protocol, source.name)
