"""Access to the files of a few-shot data set by phase and split."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meta_opt.data.preprocessing.prompts import fill_template
from meta_opt.data.sources.few_shot.files import DESCRIPTION
from meta_opt.data.sources.few_shot.protocol import FewShotConfig
from meta_opt.data.sources.jsonl_samples import read_samples
from meta_opt.text_files import read_json
from meta_opt.types import from_config


@dataclasses.dataclass(frozen=True)
class StoredFewShot:
    """A data set of `meta_opt.data.sources.few_shot.files.write_dataset`, at one width.

    Attributes:
        folder: with ``dataset.json``.
        width: image width in pixels, one of ``widths``.
        classes: K names.
        phases: number of training phases.
        variant: variant of ``configs/few_shot_data.py`` that writes such a folder.
        widths: all image widths of the data set, in pixels.
        template: template of the prompt, with ``{categories}``.
    """

    folder: Path
    width: int
    classes: tuple[str, ...]
    phases: int
    variant: str
    widths: tuple[int, ...]
    template: str
    _digests: dict[Path, str] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def prompt(self) -> str:
        """The prompt for all images."""
        return fill_template(self.template, categories=", ".join(self.classes))

    def train(self, phase: int, cumulative: bool = False) -> Path:
        """The file of a phase's training data.

        Args:
            phase: number of the phase, from 1.
            cumulative: whether to include the data of earlier phases.

        Raises:
            ValueError: the phase is out of range.
            FileNotFoundError: missing file; the message has the command that writes it.
        """
        if not 1 <= phase <= self.phases:
            raise ValueError(f"phase {phase} must be from 1 to {self.phases}")
        if not cumulative or phase == 1:
            return self._file(f"phase_{phase}")
        if phase == self.phases:
            return self._file("train")
        return self._file(f"phases_1_to_{phase}")

    def held_out(self, split: str) -> Path:
        """The file of the ``validation`` or ``test`` data; raises as `train`."""
        return self._file(split)

    def digest(self, file: Path) -> str:
        """SHA-256 of the description, a file's lines and the images that they refer to.

        The lines alone would be the same for all widths.
        """
        if file in self._digests:
            return self._digests[file]
        found = hashlib.sha256((self.folder / DESCRIPTION).read_bytes())
        found.update(file.read_bytes())
        for sample in read_samples(file):
            try:
                picture = sample.media["image"].read()
            except OSError:
                picture = b""  # Missing files count as unreadable in a run.
            found.update(hashlib.sha256(picture).digest())
        self._digests[file] = found.hexdigest()
        return self._digests[file]

    def _file(self, name: str) -> Path:
        path = self.folder / str(self.width) / f"{name}.jsonl"
        if not path.is_file():
            raise _missing(path, self.folder, self.variant)
        return path


def open_few_shot(
    folder: str | os.PathLike, width: int, variant: str = "openclipart"
) -> StoredFewShot:
    """Opens a folder of few-shot data.

    Args:
        folder: with ``dataset.json``.
        width: image width in pixels; 0 for the smallest.
        variant: variant of ``configs/few_shot_data.py``, for error messages.

    Raises:
        FileNotFoundError: missing data; the message has the command that writes them.
        ValueError: a damaged description, or a width that was not written.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not path.is_file():
        raise _missing(path, folder, variant)
    about = read_json(path)
    try:
        classes, settings = _checked(about)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    widths = settings.widths
    width = width or min(widths)
    found = StoredFewShot(
        folder, width, classes, settings.phases, variant, widths, settings.prompt
    )
    if width not in widths:
        raise ValueError(
            f"width={width}: {folder} has {', '.join(map(str, widths))} pixels; take "
            f"one of these, or write others with --config.protocol.widths"
        )
    return found


def _checked(about: Mapping[str, Any]) -> tuple[tuple[str, ...], FewShotConfig]:
    """The classes and the settings of a description."""
    for key in ("classes", "settings"):
        if key not in about:
            raise ValueError(f"it lacks {key!r}")
    classes = about["classes"]
    if not (isinstance(classes, list) and all(isinstance(x, str) for x in classes)):
        raise ValueError(f"classes={classes!r} must be a list of strings")
    return tuple(classes), from_config(FewShotConfig, about["settings"], "settings")


def _missing(path: Path, folder: Path, variant: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{path} is not there; `python -m experiments.few_shot_data --config "
        f"configs/few_shot_data.py:{variant} --config.out={folder}` writes it"
    )
