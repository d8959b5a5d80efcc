"""Predictions of classifiers as JSON lines.

Summary and report read only this file::

    {"example": "ships/0007.png", "label": "ship", "prediction": "bird",
     "confidence": 0.71, "model": "resnet50", "seed": 0,
     "condition": {"corruption": "contrast", "severity": 3, "train_px": 100,
     "test_px": 100}, "image": "100/images/ships/0007.png"}

(on one line). Required are ``example``, ``label``, ``prediction`` and ``model``;
``prediction`` is null if an answer could not be parsed, which counts as wrong.
``condition`` has the settings of `meta_opt.studies.stress.conditions.Condition` that
differ from its defaults. Instead of ``confidence`` there may be ``probabilities``, an
object with the probability of each category. ``image`` is the path of the image
before corruption, at the width of the test, relative to the folder that the report
gets.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.studies.stress.conditions import Condition
from meta_opt.text_files import read_jsonl, write_jsonl
from meta_opt.types import from_config

_SUM_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction of one model for one example.

    Attributes:
        example: key of the example, which also seeds corruptions.
        label: correct category.
        prediction: predicted category; None if the answer could not be parsed.
        model: name of the model, the same for all its seeds.
        seed: random seed of the model's training.
        condition: condition of the test.
        confidence: probability of the prediction; None if unknown.
        image: path of the image, see the module's docstring; "" if not stored.
    """

    example: str
    label: str
    prediction: str | None
    model: str
    seed: int = 0
    condition: Condition = dataclasses.field(default_factory=Condition)
    confidence: float | None = None
    image: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for empty names and an invalid confidence."""
        for name in ("example", "label", "model"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty")
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence={self.confidence} must be from 0 to 1")

    @property
    def correct(self) -> bool:
        """Whether the prediction is the label."""
        return self.prediction == self.label


def parse_prediction(value: Any) -> Prediction:
    """Parses the JSON value of a line.

    Raises:
        ValueError: the value is not an object, a key is unknown or missing, a value has
            the wrong type, or probabilities lack the prediction or do not sum to 1.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a JSON object")
    settings = dict(value)
    probabilities = settings.pop("probabilities", None)
    if probabilities is not None:
        if settings.get("confidence") is not None:
            raise ValueError(
                "there are both confidence and probabilities; give one of them"
            )
        settings["confidence"] = _confidence(probabilities, settings.get("prediction"))
    if settings.get("seed", 0) is None:
        settings.pop("seed")
    return from_config(Prediction, settings, "prediction")


def _confidence(probabilities: Any, prediction: Any) -> float | None:
    if not isinstance(probabilities, Mapping) or not all(
        isinstance(p, int | float) and 0 <= p <= 1 for p in probabilities.values()
    ):
        raise ValueError(
            "probabilities must be an object of category to number from 0 to 1"
        )
    total = math.fsum(probabilities.values())
    if abs(total - 1) > _SUM_TOLERANCE:
        raise ValueError(f"probabilities sum to {total:g} and must sum to 1")
    if prediction is None:
        return None
    if not isinstance(prediction, str) or prediction not in probabilities:
        raise ValueError(f"probabilities lack the prediction, {prediction!r}")
    return float(probabilities[prediction])


def read_predictions(paths: Iterable[str | os.PathLike]) -> list[Prediction]:
    """Reads files of predictions, in order.

    Args:
        paths: JSON-lines files.

    Raises:
        ValueError: an error of `parse_prediction`, with file and line, or the files
            have no predictions.
        FileNotFoundError: a file does not exist.
    """
    paths, found = list(paths), list[Prediction]()
    for path in paths:
        found += read_jsonl(Path(path), lambda value, line: parse_prediction(value))
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))}: the files have no prediction")
    return found


def write_predictions(
    path: str | os.PathLike, predictions: Iterable[Prediction]
) -> None:
    """Writes a file that `read_predictions` reads, atomically.

    Args:
        path: path of the file; its folder is created.
        predictions: predictions in the order of the lines.
    """
    write_jsonl(
        path,
        (
            dataclasses.asdict(one) | {"condition": one.condition.to_json()}
            for one in predictions
        ),
    )


@dataclasses.dataclass(frozen=True)
class Cell:
    """Predictions of one model under one condition, as arrays.

    Attributes:
        model: name of the model.
        condition: condition of the test.
        examples: keys of the N examples, sorted.
        seeds: the S training seeds, ascending.
        labels: indices of correct categories, int [N].
        predictions: indices of predicted categories, int [S, N]; -1 if an answer could
            not be parsed.
        confidences: probabilities of the predictions, float [S, N], 0 without a
            prediction; None unless every prediction has a confidence.
    """

    model: str
    condition: Condition
    examples: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray | None

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is correct, bool [S, N]."""
        return self.predictions == self.labels[None, :]


def cells(
    predictions: Iterable[Prediction],
) -> dict[tuple[str, Condition], Cell]:
    """Collects predictions in arrays by model and condition, in order of appearance.

    Args:
        predictions: predictions of any models and conditions, in any order.

    Raises:
        ValueError: an example occurs twice, has two labels, or is missing for a seed.
    """
    labels: dict[str, str] = {}
    found: dict[tuple[str, Condition], dict[int, dict[str, Prediction]]] = {}
    for one in predictions:
        if labels.setdefault(one.example, one.label) != one.label:
            raise ValueError(
                f"example {one.example!r} has the labels {labels[one.example]!r} and "
                f"{one.label!r}"
            )
        seeds = found.setdefault((one.model, one.condition), {})
        examples = seeds.setdefault(one.seed, {})
        if one.example in examples:
            raise ValueError(
                f"example {one.example!r} occurs twice for model {one.model!r}, seed "
                f"{one.seed}, condition {one.condition.name!r}"
            )
        examples[one.example] = one
    names = sorted({*labels.values()} | _predicted(found))
    numbers = {name: i for i, name in enumerate(names)}
    return {key: _cell(key, seeds, labels, numbers) for key, seeds in found.items()}


def _predicted(found: Mapping[Any, Mapping[int, Mapping[str, Prediction]]]) -> set[str]:
    return {
        one.prediction
        for seeds in found.values()
        for examples in seeds.values()
        for one in examples.values()
        if one.prediction is not None
    }


def _cell(
    key: tuple[str, Condition],
    found: Mapping[int, Mapping[str, Prediction]],
    labels: Mapping[str, str],
    numbers: Mapping[str, int],
) -> Cell:
    model, condition = key
    seeds = sorted(found)
    examples = sorted(found[seeds[0]])
    for seed in seeds:
        if missing := sorted({*examples} ^ {*found[seed]}):
            raise ValueError(
                f"model {model!r}, condition {condition.name!r}: seeds {seeds[0]} and "
                f"{seed} do not have the same examples, such as {missing[0]!r}"
            )
    rows = [[found[seed][example] for example in examples] for seed in seeds]
    read = [one for row in rows for one in row if one.prediction is not None]
    confidences = None
    if read and all(one.confidence is not None for one in read):
        confidences = np.asarray(
            [[0.0 if x.prediction is None else x.confidence for x in r] for r in rows]
        )
    return Cell(
        model=model,
        condition=condition,
        examples=tuple(examples),
        seeds=tuple(seeds),
        labels=np.asarray([numbers[labels[example]] for example in examples]),
        predictions=np.asarray(
            [
                [-1 if x.prediction is None else numbers[x.prediction] for x in r]
                for r in rows
            ]
        ),
        confidences=confidences,
    )
