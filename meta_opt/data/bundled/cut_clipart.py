"""Cuts the bundled shard from the prepared Open Clip Art: see ``--help``.

``make data`` and then ``python -m meta_opt.data.bundled.cut_clipart`` rewrite the
shard, its JSON and its data card. The pixels are the same on every machine; the bytes
of the file depend on Pillow's libwebp as well.
"""

import argparse
import collections
import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from meta_opt.data import data_dir
from meta_opt.data.bundled import BUNDLED
from meta_opt.data.preprocessing.images import decode, fit_square
from meta_opt.data.records import SPLITS
from meta_opt.data.sources.clipart import SHARD_NAME, SIZE
from meta_opt.data.sources.selection import CATEGORIES, CLASS_NAMES, Described, select
from meta_opt.data.sources.tfds_sources import read_records
from meta_opt.markdown import markdown_table
from meta_opt.text_files import write_json
from meta_opt.types import write_atomic

CLASS_LIMIT = 250
MIN_CLASS_ITEMS = 25
NEAR_COPY = 4.0
"""Mean absolute difference of pixel values below which images are duplicates."""


@dataclasses.dataclass(frozen=True)
class Item:
    """An image of the shard and its metadata."""

    split: str
    described: Described
    pixels: np.ndarray  # uint8 [64, 64, 3]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the shard."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data_dir", type=Path, default=None, help="prepared datasets")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="folder to write to")
    arguments = parser.parse_args(argv)
    items = without_copies(read_items(arguments.data_dir or data_dir()))
    check_classes(items)
    print(write_shard(items, arguments.out))


def read_items(root: Path) -> list[Item]:
    """Reads the selected images of the prepared dataset, in the order of paths."""
    described, splits, encoded = [], [], []
    for split in SPLITS:
        for row in read_records("openclipart", split, root):
            described.append(
                Described(row["path"], row["title"], tuple(row["keywords"]))
            )
            splits.append(split)
            encoded.append(row["image"])
    chosen = sorted(
        select(described, class_limit=CLASS_LIMIT), key=lambda i: described[i].path
    )
    return [
        Item(splits[i], described[i], fit_square(decode(encoded[i]), SIZE))
        for i in chosen
    ]


def without_copies(items: Sequence[Item]) -> list[Item]:
    """Removes items that are near duplicates of an item of an earlier split.

    Validation is compared with train, and test with both; duplicates within a split are
    removed, too.
    """
    kept: list[Item] = []
    for split in SPLITS:
        others = np.asarray([item.pixels for item in kept], np.int16)
        # The difference of block means is a lower bound of that of the pixels: a cheap
        # filter.
        coarse = np.asarray([_block_means(item.pixels) for item in kept])
        seen: set[bytes] = set()
        for item in items:
            if item.split != split or (digest := item.pixels.tobytes()) in seen:
                continue
            if len(others):
                bound = np.abs(coarse - _block_means(item.pixels)).mean(axis=1)
                near = others[bound < NEAR_COPY]
                difference = np.abs(near - item.pixels).mean(axis=(1, 2, 3))
                if (difference < NEAR_COPY).any():
                    continue
            seen.add(digest)
            kept.append(item)
    return sorted(kept, key=lambda item: item.described.path)


def _block_means(pixels: np.ndarray) -> np.ndarray:
    """Returns the means of 8 x 8 blocks of uint8 [64, 64, 3]: float32 [192]."""
    blocks = pixels.reshape(SIZE // 8, 8, SIZE // 8, 8, 3)
    return blocks.mean(axis=(1, 3), dtype=np.float32).ravel()


def check_classes(items: Sequence[Item]) -> None:
    """Raises ValueError if a class is too small or missing from a split."""
    counts = collections.Counter(item.described.category for item in items)
    small = {c: counts[c] for c in CATEGORIES if counts[c] < MIN_CLASS_ITEMS}
    if small:
        raise ValueError(f"classes with under {MIN_CLASS_ITEMS} items: {small}")
    for split in SPLITS:
        present = {i.described.category for i in items if i.split == split}
        if missing := set(CATEGORIES) - present:
            raise ValueError(f"{split} has no {', '.join(sorted(missing))}")


def write_shard(items: Sequence[Item], out: Path) -> str:
    """Writes the zip file, its JSON and the data card; returns a one-line summary."""
    buffer = io.BytesIO()
    lines = []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, item in enumerate(items):
            name = f"images/{number:04d}.webp"
            _add(archive, name, _webp(item.pixels))
            row = {
                "file": name,
                "split": item.split,
                "title": item.described.title,
                "category": CLASS_NAMES[item.described.label],
                "keywords": item.described.keywords,
                "path": item.described.path,
            }
            lines.append(json.dumps(row, ensure_ascii=False))
        text = "".join(f"{line}\n" for line in lines).encode()
        _add(archive, "metadata.jsonl", text, zipfile.ZIP_DEFLATED)
    data = buffer.getvalue()
    counts = {s: sum(item.split == s for item in items) for s in SPLITS}
    description = {
        "file": SHARD_NAME,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "pixels_sha256": hashlib.sha256(
            b"".join(item.pixels.tobytes() for item in items)
        ).hexdigest(),
        "image_size": SIZE,
        "splits": counts,
        "class_names": CLASS_NAMES,
        "licence": "public domain",
        "cut_by": "python -m meta_opt.data.bundled.cut_clipart",
    }
    with write_atomic(out / SHARD_NAME) as path:
        path.write_bytes(data)
    write_json((out / SHARD_NAME).with_suffix(".json"), description)
    with write_atomic(out / "README.md") as path:
        path.write_text(_card(items, len(data)), "utf-8")
    return f"{out / SHARD_NAME}: {len(items)} pictures {counts}, {len(data):,} bytes"


def _webp(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(
        buffer, format="WEBP", lossless=True, quality=75, method=4
    )
    return buffer.getvalue()


def _add(
    archive: zipfile.ZipFile, name: str, data: bytes, compression: int = 0
) -> None:
    # A fixed timestamp, so that the same images give the same file.
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = compression
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)


def _card(items: Sequence[Item], size: int) -> str:
    counts = collections.Counter((i.described.label, i.split) for i in items)
    rows = [
        [name, *(str(counts[label, split]) for split in SPLITS)]
        for label, name in enumerate(CLASS_NAMES)
    ]
    totals = (str(sum(i.split == split for i in items)) for split in SPLITS)
    rows.append(["all", *totals])
    return _CARD.format(
        count=len(items),
        megabytes=size / 1e6,
        limit=CLASS_LIMIT,
        small=MIN_CLASS_ITEMS,
        near=NEAR_COPY,
        shard=SHARD_NAME,
        size=SIZE,
        table=markdown_table(["class", *SPLITS], rows),
    )


_CARD = """\
# Bundled data

`{shard}` holds {count} drawings of the Open Clip Art library at {size} pixels
with title, category and keywords, {megabytes:.1f} MB. It is written by
`python -m meta_opt.data.bundled.cut_clipart` from the full library, which `make data`
brings.

- **Source.** Open Clip Art library 0.18 as Debian packages it (`openclipart-png`,
  `openclipart-svg`); title and keywords are the RDF metadata of the SVG files.
- **Licence.** Public domain. Files tagged with the GPL are left out.
- **Format.** A zip file: `metadata.jsonl` (one object a picture: file, split, title,
  category, keywords, path in the library) and lossless WebP images. Its SHA-256, which
  is checked on load, is in `openclipart64.json`.
- **Left out.** Stars, icon themes, playing cards, the folders `special` and `unsorted`,
  pictures without a title or with one that more than two pictures use, classes under
  {small} items. At most {limit} items a class (only "signs and symbols" has more).
- **Pictures.** On white, aspect kept, padded to a square.
- **Split.** By the hash of the title's letters, about 80/10/10; the same as in the TFDS
  dataset `openclipart`. Validation and test have no picture that differs from one of
  an earlier split by less than {near:g} grey levels on average.
- **Known limits.** Some titles are Italian, French or Portuguese; classes are the
  library's folders and overlap (a tree may lie in plants or in geography); several
  drawings of one artist share a style across splits.

{table}

`tokenizer.json` is the caption vocabulary, written by
`python -m meta_opt.data.bundled.train_tokenizer`: 2,048 tokens of byte-pair encoding,
trained on captions of the train splits of the datasets `openclipart` and `emoji`.
"""


if __name__ == "__main__":
    main()
