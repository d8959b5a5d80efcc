"""Trained models in a stress test: classifiers and generative models."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from meta_opt.data.sources.few_shot.files import answer_of
from meta_opt.inference import GenerativeModel, PictureClassifier, load_exported
from meta_opt.metrics.category_answers import CategoryParser
from meta_opt.models import huggingface, pretrained
from meta_opt.models.generative import GenerativeConfig
from meta_opt.studies.progressive.predictions import lengths_of
from meta_opt.studies.stress.asked import Asked
from meta_opt.text_files import read_json
from meta_opt.types import near_match
from meta_opt.workloads.classification_export import is_classifier, read_settings
from meta_opt.workloads.image_text_architecture import (
    ModelConfig,
    architecture,
    is_folder,
)
from meta_opt.workloads.image_text_preprocessing import read_preprocessing

_MODEL_FILES = (".safetensors", ".json", ".model")
"""Suffixes of the files of a Hugging Face folder that determine a model's answers."""


class Answer(NamedTuple):
    """A model's answer about an image.

    Attributes:
        category: name of a category or distractor; None if it could not be parsed, or
            probabilities are NaN, as of a model whose training diverged.
        confidence: probability of the category; None if unknown.
    """

    category: str | None
    confidence: float | None


class Subject(Protocol):
    """A model with its weights in memory.

    Attributes:
        batch_size: number of images per batch.
    """

    def answer(
        self, pictures: Sequence[np.ndarray], asked: Asked, px: int
    ) -> list[Answer]:
        """Answers about images.

        Args:
            pictures: images, uint8 [H, W, 3] each.
            asked: categories, and the prompt for a generative model.
            px: width in pixels to resize images to; 0 for the model's own.
        """


@dataclasses.dataclass(frozen=True)
class Described:
    """Description of a trained model whose weights are not loaded yet.

    Attributes:
        path: path for `meta_opt.load_exported`.
        prompted: whether the model takes a prompt with the categories.
        image_size: side of the network's input in pixels.
        class_names: class names of a classifier; empty for a generative model.
        digest: digest of the contents of the weights; of a Hugging Face folder also of
            settings and tokenizer.
        processor: folder of the tokenizer, if it is not that of the model.
    """

    path: str
    prompted: bool
    image_size: int
    class_names: tuple[str, ...]
    digest: str
    processor: str = ""


def describe(name: str, path: str | os.PathLike, processor: str = "") -> Described:
    """Determines the kind of model in a folder.

    Args:
        name: name of the setting, for error messages.
        path: path for `meta_opt.load_exported`.
        processor: folder of the tokenizer, see `meta_opt.load_exported`.

    Raises:
        ValueError: there is no model, or it is damaged, or it is neither a classifier
            nor generative.
    """
    where = os.fspath(path)
    try:
        if is_classifier(where):
            settings = read_settings(where)
            size = settings.fit.size
            return Described(where, False, size, settings.class_names, settings.sha256)
        if is_folder(where) and not (Path(where) / "config.json").is_file():
            raise ValueError(
                f"{where} is not a folder of a model: it has neither classifier.json "
                "nor config.json"
            )
        if not _is_generative(where):
            raise ValueError(
                "it is neither an image classifier nor a generative model; give the "
                "folder of one"
            )
        made = architecture(_model_config(where, processor))
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}={where!r}: {error}") from None
    assert isinstance(made, GenerativeConfig)
    return Described(where, True, made.image_size, (), _digest(where), processor)


def check_classes(name: str, found: Described, classes: Sequence[str]) -> None:
    """Checks that a classifier has the classes of the data.

    Raises:
        ValueError: the classes differ; the message names them.
    """
    if found.prompted or set(found.class_names) == set(classes):
        return
    unknown = sorted(set(found.class_names) - set(classes))
    lacking = sorted(set(classes) - set(found.class_names))
    near = near_match(unknown[0], lacking) if unknown and lacking else ""
    raise ValueError(
        f"{name}={found.path!r} and the data do not have the same classes: "
        f"only the model has {', '.join(unknown) or 'none'}; only the data have "
        f"{', '.join(lacking) or 'none'}{near}"
    )


def check_width(name: str, found: Described, px: int) -> None:
    """Checks that a network supports images of a width without resizing.

    Raises:
        ValueError: the width is not supported.
    """
    if found.prompted and px != found.image_size:
        raise ValueError(
            f"{name}={found.path!r}: its image tower only takes {found.image_size} "
            f"pixels, not {px}; set tests.fitted=True, or tests.widths"
        )
    if not found.prompted and px < PictureClassifier.MIN_PIXELS:
        raise ValueError(
            f"{name}={found.path!r}: its network takes {PictureClassifier.MIN_PIXELS} "
            f"pixels or more, not {px}; set tests.fitted=True, or tests.widths"
        )


def open_subject(
    found: Described, asked: Sequence[Asked], answers: str, batch_size: int
) -> Subject:
    """Reads a model's weights.

    Args:
        found: the model.
        asked: all prompts of the test, which determine the maximum lengths of prompts
            and answers.
        answers: ``written`` or ``likelihood``, for a generative model.
        batch_size: number of images per batch.

    Raises:
        ValueError: the files are damaged.
    """
    if not found.prompted:
        model = load_exported(found.path, batch_size=batch_size)
        assert isinstance(model, PictureClassifier)
        return _ClassifierSubject(model)
    tokens = read_preprocessing(_model_config(found.path, found.processor))
    names = sorted({name for one in asked for name in one.shown.names})
    prompt, answer = lengths_of([one.prompt for one in asked], names, tokens)
    model = load_exported(
        found.path,
        processor=found.processor,
        batch_size=batch_size,
        # Twice the length of the longest answer leaves space for text around it.
        max_tokens=2 * answer,
        prompt_length=prompt,
    )
    assert isinstance(model, GenerativeModel)
    return _GenerativeSubject(model, answers)


class _ClassifierSubject:
    def __init__(self, model: PictureClassifier) -> None:
        self._model = model

    def answer(
        self, pictures: Sequence[np.ndarray], asked: Asked, px: int
    ) -> list[Answer]:
        names = self._model.class_names
        rows = self._model.probabilities(pictures, px)
        return [_likeliest(row, names.__getitem__) for row in rows]


class _GenerativeSubject:
    def __init__(self, model: GenerativeModel, answers: str) -> None:
        self._model, self._answers = model, answers

    def answer(
        self, pictures: Sequence[np.ndarray], asked: Asked, px: int
    ) -> list[Answer]:
        names = asked.shown.names
        if self._answers == "likelihood":
            texts = [answer_of(name) for name in names]
            rows = self._model.classify(pictures, texts, asked.prompt)
            return [_likeliest(row, asked.category) for row in rows]
        parser = CategoryParser(names)
        read = map(parser, self._model.answer(pictures, asked.prompt))
        return [
            Answer(asked.category(one.category) if one.category >= 0 else None, None)
            for one in read
        ]


def _likeliest(row: np.ndarray, category: Callable[[int], str]) -> Answer:
    """The most probable category; none if the model's output is NaN.

    Args:
        row: probabilities of the K categories.
        category: function from a place in the row to the name of its category.
    """
    if np.isnan(row).any():
        return Answer(None, None)
    place = int(row.argmax())
    return Answer(category(place), min(1.0, float(row[place])))


def _is_generative(path: str) -> bool:
    if is_folder(path):
        return huggingface.is_generative(path)
    return isinstance(pretrained.read_config(path), GenerativeConfig)


def _model_config(path: str, processor: str) -> ModelConfig:
    return ModelConfig(weights=path, processor=processor, loss="captioning")


def _digest(path: str) -> str:
    """Returns the recorded SHA-256 of weights, or that of the files of a folder.

    A folder is read as a whole, which takes a few seconds for gigabytes of weights.
    """
    about = Path(f"{path}.json")
    if about.is_file():
        return str(read_json(about).get("sha256"))
    if not is_folder(path):
        return hashlib.sha256(path.encode()).hexdigest()  # Shipped weights.
    listed = []
    for file in sorted(Path(path).iterdir()):
        if file.suffix in _MODEL_FILES and file.is_file():
            with file.open("rb") as opened:
                contents = hashlib.file_digest(opened, "sha256").hexdigest()
            listed.append((file.name, contents))
    return hashlib.sha256(repr(listed).encode()).hexdigest()
