"""Any prepared TFDS dataset of captioned images, read without its code."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.preprocessing.pictures import Picture
from meta_opt.error_messages import first_line
from meta_opt.text_files import decode_text
from meta_opt.types import near_match

CAPTIONS = ("caption", "captions", "text", "texts", "title", "name")
"""Names of caption features, in order of preference."""


class TfdsCaptions:
    """A TFDS split as `meta_opt.data.preprocessing.pictures.Rows`.

    The dataset must have been prepared with ``file_format="array_record"``, which can
    be read without TensorFlow. Captions are a text, a sequence of texts, or a sequence
    of dicts with a ``text``, as in ``coco_captions``. There are no classes.

    Args:
        name: name of the dataset in ``data_dir``, such as ``coco_captions/2017``.
        split: name of the split, such as ``train``.
        data_dir: the folder of datasets; None takes :func:`meta_opt.data.data_dir`.

    Raises:
        ValueError: a dataset that is missing or in another format, or has no such
            split, no image or no caption; the message says what exists.
        ImportError: if TensorFlow Datasets is not installed.

    Example:
        rows = TfdsCaptions("tuxpaint", "train")
    """

    class_names: tuple[str, ...] = ("",)

    def __init__(
        self, name: str, split: str, data_dir: str | os.PathLike | None = None
    ) -> None:
        builder = _builder(name, data_dir)
        if split not in builder.info.splits:
            raise ValueError(
                f"tfds:{name} has no split {split!r}; it has "
                f"{', '.join(builder.info.splits)}"
            )
        features = builder.info.features
        found = [key for key in CAPTIONS if key in features]
        if "image" not in features or not found:
            raise ValueError(
                f"tfds:{name} needs an `image` and one of {', '.join(CAPTIONS)}; it "
                f"has {', '.join(features)}"
            )
        self._caption, self._name = found[0], f"tfds:{name}/{split}"
        try:
            self._rows = builder.as_data_source(split, decoders=_undecoded(features))
        except NotImplementedError as error:
            raise ValueError(
                f"tfds:{name} cannot be read at random ({error}); prepare it with "
                'tfds.builder(..., file_format="array_record")'
            ) from None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Picture:
        """Reads a row."""
        row = self._rows[index]
        captions = tuple(text for text in _texts(row[self._caption]) if text)
        if not captions:
            raise ValueError(f"no {self._caption}")
        return Picture(row["image"], captions, 0)

    def key(self, index: int) -> str:
        """The split and the index, which are stable for a prepared dataset."""
        return f"{self._name}[{index}]"

    def name(self, index: int) -> str:
        """The same as `key`."""
        return self.key(index)

    def split(self, index: int) -> str | None:
        """Always None, since the splits of a dataset are separate sources."""
        del index
        return None

    def has_vanished(self, index: int) -> bool:
        """Always false, since rows have no files of their own."""
        del index
        return False


def tfds_splits(
    name: str, data_dir: str | os.PathLike | None = None
) -> tuple[str, ...]:
    """Names of a prepared dataset's splits.

    Raises:
        ValueError: if the dataset is missing.
        ImportError: if TensorFlow Datasets is not installed.
    """
    return tuple(_builder(name, data_dir).info.splits)


def _builder(name: str, data_dir: str | os.PathLike | None) -> Any:
    try:
        from tensorflow_datasets.core import read_only_builder
    except ImportError as error:
        raise ImportError(
            f"tfds:{name} needs TensorFlow Datasets: pip install 'meta-opt[data]'"
        ) from error
    folder = Path(data_dir or default_data_dir())
    try:
        # Read from the files, since the code of most datasets needs TensorFlow.
        return read_only_builder.builder_from_files(name, data_dir=str(folder))
    except ValueError as error:
        there = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        raise ValueError(
            f"no prepared dataset {name!r} in {folder}{near_match(name, there)} (that "
            "is data.data_dir, else $META_OPT_DATA_DIR, else ./data): "
            f"{first_line(error)}"
        ) from None


def _undecoded(features: Mapping[str, Any]) -> dict[str, Any]:
    """Skips the decoding of images, which are decoded later within a pixel budget."""
    import tensorflow_datasets as tfds

    return {
        key: tfds.decode.SkipDecoding()
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }


def _texts(value: Any) -> list[str]:
    if isinstance(value, bytes):
        return [decode_text(value).strip()]
    if isinstance(value, str):
        return [value.strip()]
    if isinstance(value, Mapping):
        return _texts(value["text"])
    return [text for one in value for text in _texts(one)]
