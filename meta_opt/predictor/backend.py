"""One interface to trained models: from samples to outputs and metrics."""

import dataclasses
import os
import shutil
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from flax import nnx
from PIL import Image

from meta_opt.data.preprocessing.images import decode
from meta_opt.data.preprocessing.pictures import (
    MAX_PIXELS,
    Unreadable,
    UnreadableFilesError,
)
from meta_opt.data.samples import Samples
from meta_opt.data.sources.sample_schema import Sample
from meta_opt.data.sources.sample_task import load_samples
from meta_opt.evaluators.multimodal import multimodal_evaluation, multimodal_outputs
from meta_opt.evaluators.retrieval import evaluate_retrieval
from meta_opt.inference import ContrastiveModel, GenerativeModel, load_exported
from meta_opt.metrics.answers import answer_metrics
from meta_opt.metrics.regression import regression_metrics, sentiment_metrics
from meta_opt.models.multimodal import Multimodal
from meta_opt.predictor.columns import Columns
from meta_opt.types import PyTree
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.multimodal_export import (
    read_multimodal,
    read_settings,
    write_multimodal,
)
from meta_opt.workloads.multimodal_inputs import InputReader, InputsConfig
from meta_opt.workloads.multimodal_model import MultimodalModelConfig
from meta_opt.workloads.readout import mean_features

MODEL = "model"
"""Name of the model's file or folder in a predictor's folder."""


class Evaluated(NamedTuple):
    """Metrics on samples.

    Attributes:
        metrics: value of each metric by name.
        examples: number of evaluated samples; unreadable ones are left out.
    """

    metrics: dict[str, float]
    examples: int


class Backend(Protocol):
    """A trained model.

    Attributes:
        name: key of the backend in `BACKENDS`.
        kind: the task, one of `meta_opt.data.samples.KINDS`.
    """

    name: str
    kind: str

    def outputs(self, samples: Sequence[Sample], what: str = "") -> np.ndarray:
        """Returns the outputs of the model; targets of the samples are not used.

        Args:
            samples: B samples.
            what: ``summary`` for the fused features; "" for the output of the task.

        Returns:
            Class logits [B, K], scores [B], unit vectors of pairs [B, 2, D], or B
            texts; for ``summary`` features [B, D].

        Raises:
            ValueError: a file that cannot be read; the message names it.
        """

    def evaluate(self, samples: Sequence[Sample], name: str) -> Evaluated:
        """Returns metrics on the samples; unreadable samples are left out."""

    def save(self, folder: Path) -> None:
        """Writes the model to a folder."""


class MultimodalBackend:
    """Pretrained encoders with fusion and a head.

    Args:
        model: the trained model.
        columns: roles of the columns of the user's data.
        inputs: settings that convert samples to arrays.
        config: architecture of the model.
        class_names: names of the K classes; empty for other tasks.
        reader: reader of the inputs; None creates one.
    """

    name = "multimodal"

    def __init__(
        self,
        model: Multimodal,
        columns: Columns,
        inputs: InputsConfig,
        config: MultimodalModelConfig,
        class_names: tuple[str, ...],
        reader: InputReader | None = None,
    ) -> None:
        self.kind, self._columns = columns.kind, columns
        self._modalities, self._names = columns.modalities, class_names
        self._model, self._inputs, self._config = model, inputs, config
        self._reader = reader or InputReader(inputs, self.kind, self._modalities)

    def outputs(self, samples: Sequence[Sample], what: str = "") -> np.ndarray:
        """See `Backend.outputs`."""
        try:
            arrays = self._load(samples, None, Unreadable(0), "samples").arrays
        except UnreadableFilesError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"a file cannot be read: {reason}") from None
        return self.outputs_of(self._read(arrays, asked=False), what)

    def outputs_of(self, arrays: dict[str, PyTree], what: str = "") -> np.ndarray:
        """As `outputs`, for arrays that the reader has returned."""
        kind = what or self.kind
        found = multimodal_outputs(
            self._model,
            kind,
            self._modalities,
            arrays,
            max_tokens=self._inputs.caption_length,
        )
        if kind == "score":
            return found * self._columns.scale + self._columns.center
        if kind == "caption":
            return np.asarray(self._reader.tokenizer.decode(found), dtype=object)
        return found

    def evaluate(self, samples: Sequence[Sample], name: str) -> Evaluated:
        """See `Backend.evaluate`."""
        loaded = self._load(samples, self.kind, Unreadable(len(samples)), name)
        if not loaded.kept:
            return Evaluated({}, 0)
        arrays = self._read(loaded.arrays)
        return Evaluated(
            self.evaluate_arrays(arrays, tuple(loaded.arrays.caption)),
            len(loaded.kept),
        )

    def evaluate_arrays(
        self,
        arrays: dict[str, PyTree],
        captions: tuple[str, ...] = (),
        write: bool = True,
    ) -> dict[str, float]:
        """Returns metrics on arrays from the reader; scores are in the user's unit."""
        if self.kind == "score":
            scores, found = arrays["score"], self.outputs_of(arrays)
            squared = float(np.mean((scores - found) ** 2))
            # Signs are informative only if both occur, as in sentiment scores.
            signed = np.min(scores) < 0 < np.max(scores)
            metrics = sentiment_metrics if signed else regression_metrics
            return {"loss": squared, **metrics(scores, found)}
        return multimodal_evaluation(
            self.kind,
            self._modalities,
            arrays,
            captions,
            self._reader.tokenizer,
            write=write,
        )(self._model)

    def save(self, folder: Path) -> None:
        """See `Backend.save`."""
        # Writing merges adapters into the kernels.
        copy = nnx.clone(self._model)
        export = ExportConfig(os.fspath(folder / MODEL))
        write_multimodal(export, copy, self._inputs, self._config, self._names)

    @classmethod
    def load(cls, folder: Path, columns: Columns, data_dir: str) -> "MultimodalBackend":
        """Loads a model that `save` wrote; for ``data_dir`` see `Predictor.load`."""
        path = folder / MODEL
        inputs, config, settings = read_settings(path)
        if data_dir:
            inputs = dataclasses.replace(inputs, data_dir=data_dir)
        names = tuple(settings["class_names"])
        reader = InputReader(inputs, columns.kind, columns.modalities)
        model = read_multimodal(path, reader.without_samples(names))
        return cls(model, columns, inputs, config, names, reader)

    def _read(self, samples: Samples, asked: bool = True) -> dict[str, PyTree]:
        """Reads samples into arrays, with mean features if the model has a readout."""
        arrays = self._reader(samples, asked=asked)
        if self._config.readout:
            encoders = self._reader.encoders
            arrays["means"] = mean_features(encoders, self._modalities, arrays)
        return arrays

    def _load(
        self,
        samples: Sequence[Sample],
        kind: str | None,
        unreadable: Unreadable,
        name: str,
    ) -> Any:
        return load_samples(
            samples,
            kind,
            self._modalities,
            self._names,
            self._inputs.image_size,
            unreadable,
            name,
        )


class VisionTextBackend:
    """A CLIP, SigLIP or PaliGemma model, or one of this library, exported by a run.

    Args:
        kind: ``retrieve`` for a contrastive model, ``caption`` for a generative one.
        path: file or folder of the export.
        temporary: folder to remove when the model is no longer used, or None.
    """

    name = "vision_text"

    def __init__(self, kind: str, path: Path, temporary: Path | None = None) -> None:
        self.kind, self._path = kind, path
        if temporary is not None:
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        model = load_exported(path)
        if not isinstance(model, ContrastiveModel | GenerativeModel):
            raise ValueError(
                f"{path} is a {type(model).__name__}, not a model of images and texts; "
                "open it with `meta_opt.load_exported`"
            )
        self._model = model

    def outputs(self, samples: Sequence[Sample], what: str = "") -> np.ndarray:
        """See `Backend.outputs`; a generative model has no ``summary``."""
        if isinstance(self._model, GenerativeModel):
            if what:
                raise ValueError("a generative model has no embeddings")
            return np.asarray(self._answers(samples), dtype=object)
        texts = [sample.fields.reads for sample in samples]
        # The caller ignores the vector of an image that a row does not have.
        blank = Image.new("RGB", (8, 8))
        images = [_opened(x) if "image" in x.media else blank for x in samples]
        return np.stack(self._model.embed(images, texts), axis=1)

    def evaluate(self, samples: Sequence[Sample], name: str) -> Evaluated:
        """See `Backend.evaluate`."""
        readable = self.readable(samples)
        if not readable:
            return Evaluated({}, 0)
        found = self.outputs(readable)
        if isinstance(self._model, GenerativeModel):
            right = [sample.fields.target for sample in readable]
            return Evaluated(answer_metrics(list(found), right), len(readable))
        texts = np.asarray([sample.fields.reads for sample in readable])[:, None]
        metrics = evaluate_retrieval(found[:, 0], found[:, 1], texts)
        both = (metrics["i2t_r1"] + metrics["t2i_r1"]) / 2
        return Evaluated({"accuracy": both, **metrics}, len(readable))

    def readable(self, samples: Sequence[Sample]) -> list[Sample]:
        """Returns the samples whose images can be read."""
        found = []
        for sample in samples:
            try:
                _opened(sample)
            except ValueError:
                continue
            found.append(sample)
        return found

    def save(self, folder: Path) -> None:
        """See `Backend.save`."""
        if self._path.is_dir():
            shutil.copytree(self._path, folder / MODEL, dirs_exist_ok=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for part in self._path.parent.glob(f"{self._path.name}.*"):
            copy = folder / f"{MODEL}{part.name.removeprefix(self._path.name)}"
            if part.is_dir():  # The tokenizer.
                shutil.copytree(part, copy, dirs_exist_ok=True)
            else:
                shutil.copyfile(part, copy)

    @classmethod
    def load(cls, folder: Path, columns: Columns, data_dir: str) -> "VisionTextBackend":
        """Loads a model that `save` wrote; ``data_dir`` is not used."""
        del data_dir
        return cls(columns.kind, folder / MODEL)

    def _answers(self, samples: Sequence[Sample]) -> list[str]:
        assert isinstance(self._model, GenerativeModel)
        prompts = [sample.fields.reads or DEFAULT_PROMPT for sample in samples]
        return self._model.answer([_opened(sample) for sample in samples], prompts)


DEFAULT_PROMPT = "caption en"
"""Default prompt of a generative model for an image without text."""

BACKENDS: Mapping[str, Any] = {
    one.name: one for one in (MultimodalBackend, VisionTextBackend)
}
"""Backends by name, as stored in a predictor's file."""


def _opened(sample: Sample) -> Image.Image:
    if "image" not in sample.media:
        raise ValueError(f"{sample.where}: the sample has no image for the model")
    media = sample.media["image"]
    try:
        return decode(media.read(), MAX_PIXELS)
    except (OSError, ValueError) as error:
        raise ValueError(f"{media.name} cannot be read: {error}") from None
