"""Image, speech, video and text data: sources, tokenizers and input pipelines.

Importing this package is cheap: modules that need Pillow, Grain, TensorFlow Datasets or
tokenizers are imported lazily.

>>> import meta_opt.data
>>> source = meta_opt.data.bundled_clipart("test")
>>> source[0]["image"].shape
(64, 64, 3)
"""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meta_opt.data.pipeline import PipelineConfig as PipelineConfig
    from meta_opt.data.pipeline import as_arrays as as_arrays
    from meta_opt.data.pipeline import make_iterator as make_iterator
    from meta_opt.data.preprocessing.audio import log_mel as log_mel
    from meta_opt.data.preprocessing.tokenizer import (
        CaptionTokenizer as CaptionTokenizer,
    )
    from meta_opt.data.preprocessing.tokenizer import load_tokenizer as load_tokenizer
    from meta_opt.data.records import MemorySource as MemorySource
    from meta_opt.data.records import Record as Record
    from meta_opt.data.records import Source as Source
    from meta_opt.data.records import source_arrays as source_arrays
    from meta_opt.data.sources.cldr import cldr_arrays as cldr_arrays
    from meta_opt.data.sources.clipart import bundled_clipart as bundled_clipart
    from meta_opt.data.sources.glyphs import glyph_arrays as glyph_arrays
    from meta_opt.data.sources.media_arrays import AsteriskArrays as AsteriskArrays
    from meta_opt.data.sources.media_arrays import (
        animated_emoji_arrays as animated_emoji_arrays,
    )
    from meta_opt.data.sources.media_arrays import asterisk_arrays as asterisk_arrays
    from meta_opt.data.sources.media_arrays import klettres_arrays as klettres_arrays
    from meta_opt.data.sources.media_arrays import tuxpaint_arrays as tuxpaint_arrays
    from meta_opt.data.sources.tfds_sources import emoji_arrays as emoji_arrays
    from meta_opt.data.sources.tfds_sources import tfds_source as tfds_source

_HOMES = {
    "log_mel": "preprocessing.audio",
    "cldr_arrays": "sources.cldr",
    "bundled_clipart": "sources.clipart",
    "glyph_arrays": "sources.glyphs",
    "AsteriskArrays": "sources.media_arrays",
    "animated_emoji_arrays": "sources.media_arrays",
    "asterisk_arrays": "sources.media_arrays",
    "klettres_arrays": "sources.media_arrays",
    "tuxpaint_arrays": "sources.media_arrays",
    "PipelineConfig": "pipeline",
    "as_arrays": "pipeline",
    "make_iterator": "pipeline",
    "MemorySource": "records",
    "Record": "records",
    "Source": "records",
    "source_arrays": "records",
    "emoji_arrays": "sources.tfds_sources",
    "tfds_source": "sources.tfds_sources",
    "CaptionTokenizer": "preprocessing.tokenizer",
    "load_tokenizer": "preprocessing.tokenizer",
}

__all__ = [
    "AsteriskArrays",
    "CaptionTokenizer",
    "MemorySource",
    "PipelineConfig",
    "Record",
    "Source",
    "animated_emoji_arrays",
    "as_arrays",
    "asterisk_arrays",
    "bundled_clipart",
    "cldr_arrays",
    "data_dir",
    "emoji_arrays",
    "glyph_arrays",
    "klettres_arrays",
    "load_tokenizer",
    "log_mel",
    "make_iterator",
    "source_arrays",
    "tfds_source",
    "tuxpaint_arrays",
]


def data_dir() -> Path:
    """Returns the folder of datasets: ``$META_OPT_DATA_DIR``, else ``./data``."""
    return Path(os.environ.get("META_OPT_DATA_DIR") or "data")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
