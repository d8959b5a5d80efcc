"""A user's own images with captions, or with questions and answers."""

import dataclasses
import logging
import os
import stat
import zlib
from pathlib import Path

from meta_opt.data.preprocessing.pictures import Picture
from meta_opt.data.sources.jsonl_samples import read_samples
from meta_opt.data.sources.sample_schema import Fields, Media

_log = logging.getLogger(__name__)

_SAID = tuple(f.name for f in dataclasses.fields(Fields) if f.name != "files")


class ImageTextRows:
    """Rows of `meta_opt.data.preprocessing.pictures.Pictures` over a user's samples.

    An image's captions are the sample's ``target``, or where it has none its ``text``.
    What is asked about it is its ``prompt``; beside a ``target`` also its ``text``,
    which comes first.

    Args:
        path: see `meta_opt.data.sources.jsonl_samples.read_samples`.

    Attributes:
        class_names: those of the labels, sorted; one, "", unless every sample has one.
        captions: of each image.

    Raises:
        ValueError: see `read_samples`; or a sample without image or caption.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> file = Path(tempfile.mkdtemp()) / "pairs.jsonl"
        >>> _ = file.write_text('{"image": "a.png", "text": "all red"}')
        >>> rows = ImageTextRows(file)
        >>> len(rows), rows.captions[0], rows.key(0)
        (1, ('all red',), 'a.png')
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._samples = read_samples(path)
        for sample in self._samples:
            if "image" not in sample.media:
                raise ValueError(f"{sample.where}: needs an `image`")
            if not (sample.fields.target or sample.fields.text):
                raise ValueError(
                    f"{sample.where}: needs a non-empty `text`, a caption (or "
                    "a `target`, what is to be written)"
                )
        self.captions = tuple(s.fields.target or s.fields.text for s in self._samples)
        labels = [sample.fields.label for sample in self._samples]
        if lacking := labels.count(None):
            if lacking < len(labels):
                _log.warning(
                    "%s: %d of %d samples have no `label`, so the others' are ignored",
                    *(path, lacking, len(labels)),
                )
            labels = [""] * len(labels)
        self.class_names = tuple(sorted({str(label) for label in labels}))
        places = {name: i for i, name in enumerate(self.class_names)}
        self._labels = [places[str(label)] for label in labels]
        # Files, not rows: a tar file has many.
        files = {sample.media["image"].file for sample in self._samples}
        self._present = {file for file in files if Media(file).exists()}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Picture:
        """Reads a row.

        Raises:
            OSError: if the file is not there or cannot be read.
        """
        sample = self._samples[index]
        prompt = sample.fields.reads if sample.fields.target else ""
        data = sample.media["image"].read()
        return Picture(data, self.captions[index], self._labels[index], prompt)

    def key(self, index: int) -> str:
        """The image's path from the JSONL file's folder, or tar file and member."""
        return self._samples[index].key

    def name(self, index: int) -> str:
        """The image's path, or that of the tar file with the member."""
        return self._samples[index].media["image"].name

    def digest(self) -> int:
        """A checksum of what the samples say and of the sizes of their images.

        An image that is not there counts as empty: reading it says what is wrong.
        """
        found = 0
        for sample in self._samples:
            image = sample.media["image"]
            size = image.size
            if size < 0:
                size = _size(image.file)
            # Of the paths, which may be absolute, the key is what is left.
            said = ({}, *(getattr(sample.fields, name) for name in _SAID))
            about = (sample.key, size, said)
            found = zlib.crc32(repr(about).encode(), found)
        return found

    def split(self, index: int) -> str | None:
        """The sample's ``split``."""
        return self._samples[index].fields.split

    def has_vanished(self, index: int) -> bool:
        """Whether the image's file, or tar file, has gone since it was listed."""
        file = self._samples[index].media["image"].file
        return file in self._present and not file.is_file()


def _size(file: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        found = file.stat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
