"""Exports of video-text models: folders of arrays, vocabularies and settings.

``model.safetensors`` has every array of the model by its '/'-joined path, with adapters
merged; ``video_text.json`` has the settings of clips and model, the vocabularies of
captions and answers, and SHA-256s. Frozen layers of the encoders and the tokenizer are
not written: they are read from the prepared encoders, whose SHA-256 is checked.
"""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.catalog.encoder_weights import ABOUT, encoder_folder
from meta_opt.models.lora import merge_lora
from meta_opt.models.video_text import VideoText
from meta_opt.text_files import read_json, read_versioned, write_json
from meta_opt.types import from_config
from meta_opt.workloads.clip_reader import PRECOMPUTED, ClipReader, ClipReaderConfig
from meta_opt.workloads.exported_arrays import read_arrays, write_arrays
from meta_opt.workloads.video_text_losses import losses_of
from meta_opt.workloads.video_text_model import (
    TargetSizes,
    VideoTextModelConfig,
    factory_of,
)

SETTINGS, ARRAYS = "video_text.json", "model.safetensors"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class VideoTextSettings:
    """The settings of an exported video-text model, without its arrays.

    Attributes:
        family: model family whose losses the model was trained with, one of
            `meta_opt.workloads.video_text_losses.FAMILIES`.
        task: one of `meta_opt.workloads.video_text_losses.TASKS`.
        reader: how clips and texts become arrays.
        model: settings of the model, without adapters, which were merged.
        sizes: sizes of the model's predictions.
        vocabulary: K tokenizer ids that captions consist of.
        answers: vocabulary of answers to questions.
        encoders: SHA-256 of the prepared encoders that the model was trained on, by
            modality.
        sha256: SHA-256 of the file of arrays.
    """

    family: str
    task: str
    reader: ClipReaderConfig
    model: VideoTextModelConfig
    sizes: TargetSizes
    vocabulary: tuple[int, ...]
    answers: tuple[str, ...]
    encoders: dict[str, str]
    sha256: str = ""

    @property
    def primary(self) -> str:
        """Name of the primary loss of the task."""
        return losses_of(self.family, self.task)[1]


class ExportedVideoText(NamedTuple):
    """An exported model that was read, with the reader of its inputs.

    Attributes:
        model: the model with concrete arrays.
        settings: settings of the export.
        reader: encodes frames and texts into the model's input.
    """

    model: VideoText
    settings: VideoTextSettings
    reader: ClipReader

    def decode(self, words: np.ndarray) -> list[str]:
        """Decodes generated rows of words, int [N, S], to texts."""
        vocabulary = np.asarray(self.settings.vocabulary)
        return self.reader.tokenizer.decode(vocabulary[words])


def is_video_text(path: str | os.PathLike) -> bool:
    """Whether a path is a folder that `write_video_text` wrote."""
    return (Path(path) / SETTINGS).is_file()


def encoder_digests(
    config: ClipReaderConfig, root: str | os.PathLike
) -> dict[str, str]:
    """Returns the SHA-256 of each prepared encoder of a reader, by modality.

    Args:
        config: settings of the reader.
        root: folder of encoders.
    """
    return {
        modality: read_json(encoder_folder(name, root) / ABOUT)["sha256"]
        for modality, name in config.encoders.items()
        if name != PRECOMPUTED
    }


def write_video_text(
    folder: str | os.PathLike, model: VideoText, settings: VideoTextSettings
) -> None:
    """Writes a trained model, replacing the one in the folder, if any.

    Args:
        folder: output folder, created if needed.
        model: trained model; it may be modified, because adapters are merged.
        settings: settings of the model; the SHA-256 of the arrays is filled in.
    """
    if settings.model.trainable == "lora":
        merge_lora(model)
    folder = Path(folder)
    digest = write_arrays(folder / ARRAYS, model)
    about = dataclasses.asdict(
        dataclasses.replace(
            settings,
            model=dataclasses.replace(settings.model, trainable="all"),
            sha256=digest,
        )
    )
    about["sizes"] = settings.sizes._asdict()
    # Written last, so that settings never refer to missing arrays.
    write_json(folder / SETTINGS, {"format": _FORMAT, **about})


def read_settings(folder: str | os.PathLike) -> VideoTextSettings:
    """Reads the settings of an exported model.

    Raises:
        ValueError: the file is missing, damaged, or of another format.
    """
    path = Path(folder) / SETTINGS
    about = read_versioned(path, _FORMAT)
    try:
        sizes = about.get("sizes")
        if not isinstance(sizes, dict) or sizes.keys() != set(TargetSizes._fields):
            raise ValueError(
                f"sizes={sizes!r} must have {', '.join(TargetSizes._fields)}"
            )
        about["sizes"] = TargetSizes(**sizes)
        settings = from_config(VideoTextSettings, about, "settings")
        losses_of(settings.family, settings.task)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return settings


def read_video_text(
    folder: str | os.PathLike, data_dir: str | os.PathLike = ""
) -> ExportedVideoText:
    """Reads a model that `write_video_text` wrote.

    Args:
        folder: folder of the two files.
        data_dir: folder of prepared encoders; "" for $META_OPT_DATA_DIR, else
            ``data``.

    Raises:
        ValueError: files are missing or damaged, arrays are of another model, or
            encoders are not those that the model was trained on.
        MissingDataError: an encoder is not prepared.
    """
    settings = read_settings(folder)
    root = os.fspath(data_dir) or default_data_dir()
    for modality, digest in encoder_digests(settings.reader, root).items():
        if digest != settings.encoders.get(modality):
            name = settings.reader.encoders[modality]
            raise ValueError(
                f"{folder} was trained on another encoder {name!r} than "
                f"{encoder_folder(name, root)}, whose SHA-256 is {digest}, not "
                f"{settings.encoders.get(modality)}: give the data_dir of that one"
            )
    reader = ClipReader(settings.reader, root)
    names, _ = losses_of(settings.family, settings.task)
    sizes = settings.sizes
    codebook = np.zeros((sizes.codes, sizes.frame), np.float32) if sizes.codes else None
    create = factory_of(names, settings.model, sizes, reader.encoders, codebook)
    path = Path(folder)
    model = read_arrays(
        path / ARRAYS,
        lambda: create(jax.random.key(0)),
        settings.sha256,
        path / SETTINGS,
    )
    return ExportedVideoText(model, settings, reader)
