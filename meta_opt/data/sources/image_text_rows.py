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
    """A user's samples as `meta_opt.data.preprocessing.pictures.Rows`.

    An image's captions are the sample's ``target`` or, if it has none, its ``text``.
    Its prompt is the sample's ``prompt``, preceded by the ``text`` if there is a
    ``target``.

    Args:
        path: see `meta_opt.data.sources.jsonl_samples.read_samples`.

    Attributes:
        class_names: sorted names of the labels; the single name "" unless every sample
            has a label.
        captions: captions of each image.

    Raises:
        ValueError: see `read_samples`; or for a sample without image or caption.

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
        # Cached by file, since a tar file has many rows.
        files = {sample.media["image"].file for sample in self._samples}
        self._present = {file for file in files if Media(file).exists()}

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Picture:
        """Reads a row.

        Raises:
            OSError: if the file is missing or cannot be read.
        """
        sample = self._samples[index]
        prompt = sample.fields.reads if sample.fields.target else ""
        data = sample.media["image"].read()
        return Picture(data, self.captions[index], self._labels[index], prompt)

    def key(self, index: int) -> str:
        """The image's path from the JSONL file's folder, or tar file and member."""
        return self._samples[index].key

    def name(self, index: int) -> str:
        """The image's path, or path of the tar file and member."""
        return self._samples[index].media["image"].name

    def digest(self) -> int:
        """A checksum of the samples' fields and of the sizes of their files.

        A missing file counts as empty; the error is raised on reading it.
        """
        found = 0
        for sample in self._samples:
            image = sample.media["image"]
            size = image.size
            if size < 0:
                size = _size(image.file)
            # Keys instead of paths, which may be absolute.
            said = ({}, *(getattr(sample.fields, name) for name in _SAID))
            about = (sample.key, size, said)
            found = zlib.crc32(repr(about).encode(), found)
        return found

    def split(self, index: int) -> str | None:
        """The sample's ``split``."""
        return self._samples[index].fields.split

    def has_vanished(self, index: int) -> bool:
        """Whether the image's file has disappeared since it was listed."""
        file = self._samples[index].media["image"].file
        return file in self._present and not file.is_file()


def _size(file: Path) -> int:
    """Size of a file in bytes; 0 if it is missing."""
    try:
        found = file.stat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
