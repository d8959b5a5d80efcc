r"""The data set as files: PNG images, and a JSONL file for each split.

Layout of the folder::

    dataset.json                  counts, settings, what was left out
    images/google/1f43b.png
    images/stamps/animals/frog.png
    train.jsonl, validation.jsonl, test.jsonl

A line is ``{"image": "images/google/1f43b.png", "prompt": "What is this?", "target":
"bear", "split": "train"}``, which `meta_opt.data.sources.jsonl_samples.read_samples`
reads.
"""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.preprocessing.images import encode_png
from meta_opt.data.preprocessing.pictures import Unreadable
from meta_opt.data.sources.answers.pictures import (
    SOURCES,
    NamedPicture,
    read_pictures,
)
from meta_opt.data.sources.answers.questions import QuestionsConfig, ask
from meta_opt.text_files import write_json, write_jsonl
from meta_opt.types import check_least, check_name

DESCRIPTION = "dataset.json"


@dataclasses.dataclass(frozen=True)
class AnswersDataConfig:
    """Which images the data set contains, and their size.

    Attributes:
        names: sources of the images, of
            `meta_opt.data.sources.answers.pictures.SOURCES`.
        data_dir: folder of datasets; None for `meta_opt.data.data_dir`.
        width: of the images in pixels, at most.
        every: keeps every n-th emoji or stamp, for trial runs; 1 keeps all.
        max_unreadable: images that may be skipped.
    """

    names: tuple[str, ...] = SOURCES
    data_dir: str | None = None
    width: int = 200
    every: int = 1
    max_unreadable: int = 20

    def __post_init__(self) -> None:
        """Raises ValueError for unknown names and numbers out of range."""
        for name in self.names:
            check_name("data.names", name, SOURCES)
        if not self.names:
            raise ValueError(f"data.names is empty: name {', '.join(SOURCES)}")
        check_least("data", self, width=1, every=1, max_unreadable=0)


def build(
    config: AnswersDataConfig, questions: QuestionsConfig, out: str | os.PathLike
) -> dict[str, Any]:
    """Reads the images, makes the questions and writes the data set.

    Raises:
        MissingDataError: missing packages; the message has the command that fetches
            them.
        ValueError, UnreadableFilesError: as `write_dataset`.
    """
    root = Path(config.data_dir or default_data_dir())
    pictures: list[NamedPicture] = []
    for name in config.names:
        found = list(read_pictures(name, root))
        # Subsample by what is shown: either all drawings of an emoji are kept or none.
        shown = sorted({picture.name for picture in found})[:: config.every]
        pictures += [picture for picture in found if picture.name in set(shown)]
    return write_dataset(out, pictures, questions, config.width, config.max_unreadable)


def write_dataset(
    out: str | os.PathLike,
    pictures: Sequence[NamedPicture],
    questions: QuestionsConfig,
    width: int = 200,
    max_unreadable: int = 20,
) -> dict[str, Any]:
    """Makes the questions and writes the data set atomically.

    Args:
        out: the output folder, which must be empty or not exist.
        pictures: the images to ask about.
        questions: settings of the questions.
        width: of the images in pixels, at most.
        max_unreadable: images that may be skipped.

    Returns:
        The contents of ``dataset.json``.

    Raises:
        ValueError: the folder is not empty.
        UnreadableFilesError: more than ``max_unreadable`` images are unreadable.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} already exists; remove it or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    unreadable = Unreadable(max_unreadable)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        scratch = Path(name) / "dataset"
        scratch.mkdir()
        readable = _write_pictures(scratch, pictures, width, unreadable)
        asked = ask(readable, questions)
        for split, rows in asked.items():
            write_jsonl(
                scratch / f"{split}.jsonl",
                (
                    {
                        "image": _file(row.picture),
                        "prompt": row.prompt,
                        "target": row.target,
                        "split": split,
                    }
                    for row in rows
                ),
            )
        about = {
            "pictures": len(readable),
            "questions": {split: len(rows) for split, rows in asked.items()},
            "unreadable": dict(unreadable.reasons),
            "settings": {
                **dataclasses.asdict(questions),
                "categories": list(questions.categories),
                "width": width,
            },
        }
        write_json(scratch / DESCRIPTION, about)
        # Replaces an empty folder.
        os.replace(scratch, out)
    return about


def _file(picture: NamedPicture) -> str:
    return f"images/{picture.key}.png"


def _write_pictures(
    folder: Path, pictures: Sequence[NamedPicture], width: int, unreadable: Unreadable
) -> list[NamedPicture]:
    """Writes the readable images and returns them."""
    written = []
    for picture in tqdm(pictures, desc="pictures", unit="picture"):
        try:
            data = encode_png(picture.read(width))
        except (OSError, ValueError) as error:
            unreadable.add(picture.key, f"{type(error).__name__}: {error}")
            continue
        file = folder / _file(picture)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        written.append(picture)
    return written
