"""Open Clip Art as a TFDS dataset (public domain, about 6,900 images)."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from meta_opt.data.catalog.builders.clipart_files import (
    CATEGORIES,
    ClipartFile,
    library_folders,
    read_library,
)
from meta_opt.data.missing import MissingDataError
from meta_opt.data.preprocessing.images import (
    TooManyPixelsError,
    decode,
    encode_png,
    render_svg,
    shrink,
)
from meta_opt.data.records import SPLITS
from meta_opt.data.splits import split_of, title_key

SIDE = 256
"""Longer side of the stored images in pixels; smaller ones keep their size."""


class Openclipart(tfds.core.GeneratorBasedBuilder):
    """Images with title, description, keywords and category, on white.

    The split is by the hash of the title without digits, so that images with the same
    title, or numbered variants of it, share a split.
    """

    name = "openclipart"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "`make data` (or `python -m meta_opt.data.prepare --only openclipart`) "
        "downloads the Debian packages openclipart-png and openclipart-svg and unpacks "
        "them to openclipart/openclipart-png and openclipart/openclipart-svg in this "
        "folder."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Drawings of the Open Clip Art library with their metadata.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(None, None, 3), encoding_format="png"
                    ),
                    "title": tfds.features.Text(),
                    "description": tfds.features.Text(),
                    "keywords": tfds.features.Sequence(tfds.features.Text()),
                    "category": tfds.features.ClassLabel(names=CATEGORIES),
                    "subcategory": tfds.features.Text(),
                    "path": tfds.features.Text(),
                    "licence": tfds.features.Text(),
                    "sha256": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "category"),
            homepage="https://openclipart.org",
            license="Public domain",
            citation="",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        roots = library_folders(Path(dl_manager.manual_dir))
        files: dict[str, list[ClipartFile]] = {split: [] for split in SPLITS}
        for item in read_library(*roots):
            key = title_key(item.title) or item.digest
            files[split_of(key)].append(item)
        if not any(files.values()):
            raise MissingDataError("Open Clip Art (a *.png)", roots[0], self.name)
        return {split: self._generate_examples(files[split]) for split in SPLITS}

    def _generate_examples(
        self, files: list[ClipartFile]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for item in files:
            try:
                picture = shrink(decode(item.png.read_bytes()), SIDE)
            except TooManyPixelsError:
                picture = render_svg(item.svg.read_text("utf-8"), SIDE)
            yield (
                item.path,
                {
                    "image": io.BytesIO(encode_png(picture)),
                    "title": item.title,
                    "description": item.description,
                    "keywords": list(item.keywords),
                    "category": item.category,
                    "subcategory": item.subcategory,
                    "path": item.path,
                    "licence": item.licence,
                    "sha256": item.digest,
                },
            )
