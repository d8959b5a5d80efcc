"""Test images of few-shot data and of another data set."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from meta_opt.data.preprocessing.images import decode
from meta_opt.data.preprocessing.pictures import MAX_PIXELS
from meta_opt.data.preprocessing.shots import few_shots
from meta_opt.data.sources.few_shot.stored import StoredFewShot
from meta_opt.data.sources.jsonl_samples import read_samples
from meta_opt.types import check_name


@dataclasses.dataclass(frozen=True)
class LabelledPictures:
    """N images with their categories.

    Attributes:
        keys: keys of the examples, the same at every width.
        labels: category names of the examples.
        files: paths of the images.
    """

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self) -> list[np.ndarray]:
        """Reads the images, each uint8 [H, W, 3].

        Raises:
            ValueError: an image cannot be read; the message names it.
        """
        found = []
        for file in self.files:
            try:
                found.append(np.asarray(decode(file.read_bytes(), MAX_PIXELS)))
            except (OSError, ValueError) as error:
                raise ValueError(f"{file} cannot be read: {error}") from None
        return found

    def relative_to(self, folder: Path) -> list[str]:
        """Returns the paths of the images relative to a folder."""
        start = folder.resolve()
        return [
            Path(os.path.relpath(f.resolve(), start)).as_posix() for f in self.files
        ]


def read_pictures(
    paths: Sequence[Path],
    classes: Sequence[str],
    per_class: int = 0,
    labels: Mapping[str, str] | None = None,
    prefix: str = "",
) -> LabelledPictures:
    """Lists the images and labels of JSONL files, without opening the images.

    Args:
        paths: JSONL files of few-shot data at one width.
        classes: names of the classes.
        per_class: maximum number of images per class, selected by a hash of their keys;
            0 for all.
        labels: maps labels in the files to categories; samples with other labels are
            left out. None means that the labels are categories.
        prefix: prefix of the keys.

    Raises:
        ValueError: a sample has no image or no label, a label is not among the classes,
            or there are no images.
        FileNotFoundError: a file does not exist.
    """
    rows = []
    for path in paths:
        for sample in read_samples(path):
            label = sample.fields.label
            if label is None or "image" not in sample.media:
                raise ValueError(f"{sample.where}: needs an `image` and a `label`")
            if labels is not None and label not in labels:
                continue
            name = str(label) if labels is None else labels[str(label)]
            if name not in classes:
                check_name(f"{sample.where}: label", name, tuple(classes))
            rows.append((prefix + sample.key, name, sample.media["image"].file))
    if not rows:
        raise ValueError(
            f"{', '.join(map(str, paths))}: no image of any of the categories"
        )
    if per_class:
        indices = np.asarray([list(classes).index(name) for _, name, _ in rows])
        kept: list[int] = []
        for index in np.unique(indices):
            of_class = np.flatnonzero(indices == index)
            keys = [rows[i][0] for i in of_class]
            shots = min(per_class, len(of_class))
            kept += of_class[few_shots(indices[of_class], keys, shots)].tolist()
        rows = [rows[i] for i in sorted(kept)]
    return LabelledPictures(*map(tuple, zip(*rows, strict=True)))


def shift_labels(
    ours: Sequence[str], theirs: Sequence[str], given: Mapping[str, str]
) -> dict[str, str]:
    """Maps the classes of another data set to categories.

    Args:
        ours: names of categories.
        theirs: names of the other data set's classes.
        given: see `meta_opt.studies.stress.settings.ShiftConfig.labels`.

    Raises:
        ValueError: an unknown name, or the two have no class in common.

    >>> shift_labels(["bird", "drink"], ["bird", "beverage", "flag"],
    ...              {"beverage": "drink"})
    {'bird': 'bird', 'beverage': 'drink'}
    """
    for name, category in given.items():
        check_name("shift.labels", name, tuple(theirs))
        check_name(f"shift.labels.{name}", category, tuple(ours))
    mapped = {name: given.get(name, name) for name in theirs}
    mapped = {name: category for name, category in mapped.items() if category in ours}
    if not mapped:
        raise ValueError(
            f"shift.folder has the classes {', '.join(theirs)}, none of which is one "
            f"of {', '.join(ours)}: map them by name, shift.labels.THEIRS=OURS"
        )
    return mapped


def splits_of(stored: StoredFewShot) -> list[Path]:
    """Returns the JSONL files of all splits, including training examples."""
    held_out = [stored.held_out(split) for split in ("validation", "test")]
    return [stored.train(stored.phases, cumulative=True), *held_out]
