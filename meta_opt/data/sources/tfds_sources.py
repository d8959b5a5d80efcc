"""Sources for the TFDS datasets that ``make data`` prepares."""

import importlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.missing import MissingDataError
from meta_opt.data.records import MemorySource, check_split, source_arrays
from meta_opt.data.sources.selection import CLASS_NAMES, Described, select
from meta_opt.data.sources.selection import captions as clipart_captions
from meta_opt.types import near_match

_BUILDERS = {
    "openclipart": "Openclipart",
    "emoji": "Emoji",
    "klettres": "Klettres",
    "tuxpaint": "Tuxpaint",
    "asterisk": "Asterisk",
    "animated_emoji": "AnimatedEmoji",
}

CAPTIONS = ("name", "name_tags")


def make_builder(name: str, data_dir: str | os.PathLike | None = None) -> Any:
    """Returns the TFDS builder of a dataset of this package, prepared or not.

    Args:
        name: one of ``meta_opt.data.prepare.PACKAGES``, such as ``emoji``.
        data_dir: the folder of datasets; None takes :func:`meta_opt.data.data_dir`.

    Raises:
        ValueError: if there is no such dataset.
        ImportError: if TensorFlow Datasets is not installed.
    """
    if name not in _BUILDERS:
        raise ValueError(
            f"no dataset {name!r}{near_match(name, _BUILDERS)} "
            f"(datasets: {', '.join(_BUILDERS)})"
        )
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise ImportError(
            f"the dataset {name!r} needs TensorFlow Datasets: pip install "
            "'meta-opt[data]' (the bundled shard does not)"
        )
    module = importlib.import_module(f"meta_opt.data.catalog.builders.{name}")
    return getattr(module, _BUILDERS[name])(
        data_dir=os.fspath(data_dir or default_data_dir()), file_format="array_record"
    )


def read_records(
    name: str, split: str, data_dir: str | os.PathLike | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a prepared dataset: images as file bytes, texts as ``str``.

    Raises:
        MissingDataError: if the dataset has not been prepared.
        ValueError: if there is no such dataset or split.
    """
    import tensorflow_datasets as tfds

    check_split(split)
    builder = make_builder(name, data_dir)
    if not builder.is_prepared():
        raise MissingDataError(f"the dataset {name!r}", Path(builder.data_path), name)
    pictures = {"image"} & set(builder.info.features)
    rows = builder.as_data_source(
        split, decoders={key: tfds.decode.SkipDecoding() for key in pictures}
    )
    for i in range(len(rows)):
        yield {
            key: value if key == "image" else _text(value)
            for key, value in rows[i].items()
        }


def tfds_source(
    name: str,
    split: str,
    data_dir: str | os.PathLike | None = None,
    *,
    artists: Sequence[str] | None = None,
    captions: str = "name",
    image_size: int = 64,
) -> MemorySource:
    """Returns a split of a prepared dataset as an in-memory source.

    ``openclipart`` has the images selected for retrieval
    (`meta_opt.data.sources.selection.select`), labelled by category, with the split and
    the class names of the bundled shard. ``emoji`` has one record per emoji and artist,
    labelled by category.

    Args:
        name: ``openclipart`` or ``emoji``.
        split: ``train``, ``validation`` or ``test``.
        data_dir: the folder of datasets; None takes :func:`meta_opt.data.data_dir`.
        artists: for ``emoji`` only, artists to keep, in this order (None: all four).
        captions: ``name`` for one caption per record, its title or name; ``name_tags``
            for further captions with keywords or tags appended, which a pipeline may
            sample from (:class:`~meta_opt.data.pipeline.PipelineConfig`).
        image_size: side in pixels that images are resized to.

    Returns:
        A source whose ``keys`` are paths, or ``artist/codepoint``.

    Raises:
        MissingDataError: if the dataset has not been prepared; it names the command.
        ValueError: if a name is not known.
    """
    if captions not in CAPTIONS:
        raise ValueError(
            f"no captions {captions!r}{near_match(captions, CAPTIONS)} "
            f"(known: {', '.join(CAPTIONS)})"
        )
    if name == "emoji":
        source = _emoji(split, data_dir, artists, image_size)
    elif artists is not None:
        raise ValueError(f"artists belong to the dataset 'emoji', not to {name!r}")
    elif name in _BUILDERS and name != "openclipart":
        raise ValueError(
            f"{name!r} has no captioned images (openclipart and emoji have); read it "
            "with meta_opt.data.sources.media_arrays"
        )
    else:
        source = _openclipart(name, split, data_dir, image_size)
    if captions == "name":
        source.captions = tuple(texts[:1] for texts in source.captions)
    return source


def emoji_arrays(
    split: str,
    artist: str,
    data_dir: str | os.PathLike | None = None,
    size: int | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns one artist's emoji as arrays, for in-memory tasks.

    Args:
        split: ``train``, ``validation`` or ``test``.
        artist: one of :data:`meta_opt.data.catalog.emoji_artists.ARTISTS`.
        data_dir: the folder of datasets; None takes :func:`meta_opt.data.data_dir`.
        size: side in pixels; None keeps 64.

    Returns:
        Images uint8 [B, h, w, 3], labels int32 [B], and the K class names.

    Raises:
        MissingDataError: if the dataset has not been prepared.
        ValueError: if a name is not known.
    """
    source = tfds_source("emoji", split, data_dir, artists=(artist,))
    return (*source_arrays(source, size), source.class_names)


def _openclipart(
    name: str, split: str, data_dir: str | os.PathLike | None, image_size: int
) -> MemorySource:
    rows = list(read_records(name, split, data_dir))
    items = [Described(r["path"], r["title"], tuple(r["keywords"])) for r in rows]
    # Sort by path, since the stored order of records is shuffled.
    kept = sorted(select(items), key=lambda i: items[i].path)
    return MemorySource(
        [rows[i]["image"] for i in kept],
        [clipart_captions(items[i]) for i in kept],
        [items[i].label for i in kept],
        CLASS_NAMES,
        image_size,
        [items[i].path for i in kept],
    )


def _emoji(
    split: str,
    data_dir: str | os.PathLike | None,
    artists: Sequence[str] | None,
    image_size: int,
) -> MemorySource:
    from meta_opt.data.catalog.emoji_artists import ARTISTS, CATEGORIES

    known = tuple(artist.name for artist in ARTISTS)
    chosen = known if artists is None else tuple(artists)
    for artist in chosen:
        if artist not in known:
            raise ValueError(
                f"no artist {artist!r}{near_match(artist, known)} "
                f"(artists: {', '.join(known)})"
            )
    rows = [r for r in read_records("emoji", split, data_dir) if r["artist"] in chosen]
    rows.sort(key=lambda row: (chosen.index(row["artist"]), row["codepoint"]))
    return MemorySource(
        [row["image"] for row in rows],
        [_emoji_captions(row) for row in rows],
        [row["category"] for row in rows],
        [name.lower() for name in CATEGORIES],
        image_size,
        [f"{row['artist']}/{row['codepoint']}" for row in rows],
    )


def _emoji_captions(row: dict[str, Any]) -> tuple[str, ...]:
    """The name; the name with tags; the older Unicode name if it differs."""
    name, tags, unicode_name = row["name"], row["tags"], row["unicode_name"]
    texts = [name]
    extra = [tag for tag in tags if tag != name]
    if extra:
        texts.append(", ".join((name, *extra)))
    if unicode_name != name:
        texts.append(unicode_name)
    return tuple(texts)


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | tuple) or (
        isinstance(value, np.ndarray) and value.dtype == object
    ):
        return [_text(v) for v in value]
    if isinstance(value, np.integer):
        return int(value)
    return value
