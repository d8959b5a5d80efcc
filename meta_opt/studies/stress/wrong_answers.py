"""An HTML page of wrong answers, with the images as the model received them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.data.preprocessing.corruptions import corrupt
from meta_opt.data.preprocessing.images import decode
from meta_opt.reporting.page import render_page
from meta_opt.reporting.wrong_answers import ShownAnswer, choose_wrong, picture_uri
from meta_opt.studies.stress.conditions import Condition
from meta_opt.studies.stress.predictions import Prediction

TEMPLATE = Path(__file__).parent / "wrong_answers.html"

ReadPicture = Callable[[Prediction], np.ndarray | None]
"""Function that returns the image of a prediction as the model received it, uint8
[H, W, 3]; None if there is none."""


def picture_reader(folder: str | Path) -> ReadPicture:
    """Returns a function that reads an image and applies the condition's corruption.

    Args:
        folder: folder that `Prediction.image` is relative to.
    """
    folder = Path(folder)

    def read(prediction: Prediction) -> np.ndarray | None:
        if not prediction.image:
            return None
        path = folder / prediction.image
        try:
            picture = np.asarray(decode(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the image {path} of example {prediction.example!r} cannot be read: "
                f"{error}"
            ) from error
        condition = prediction.condition
        if not condition.corruption:
            return picture
        return corrupt(
            picture, condition.corruption, condition.severity, prediction.example
        )

    return read


def write_wrong_answers(
    path: str | Path,
    predictions: Sequence[Prediction],
    read_picture: ReadPicture,
    most: int = 6,
) -> None:
    """Writes the page with embedded images.

    Args:
        path: the HTML file, written atomically.
        predictions: predictions of all models and conditions; only the first seed is
            shown.
        read_picture: function that reads an image, such as of `picture_reader`.
        most: maximum number of wrong answers shown for each model and condition.

    Raises:
        ValueError: an image cannot be read.
    """
    found: dict[str, dict[Condition, dict[int, list[Prediction]]]] = {}
    for one in predictions:
        seeds = found.setdefault(one.model, {}).setdefault(one.condition, {})
        seeds.setdefault(one.seed, []).append(one)
    models: dict[str, list[dict[str, Any]]] = {}
    for model, conditions in found.items():
        for condition, seeds in conditions.items():
            seed = min(seeds)
            answers = [
                ShownAnswer(
                    example=one.example,
                    label=one.label,
                    prediction=one.prediction,
                    confidence=one.confidence,
                    text="",
                    picture=picture_uri(read_picture(one)),
                    sound="",
                )
                for one in choose_wrong(seeds[seed], most)
            ]
            models.setdefault(model, []).append(
                {
                    "name": condition.name,
                    "seed": seed,
                    "wrong": sum(not one.correct for one in seeds[seed]),
                    "total": len(seeds[seed]),
                    "answers": answers,
                }
            )
    render_page(
        path,
        TEMPLATE,
        title="Wrong answers",
        summary=f"At most {most} for each model and condition: the most confident, or, "
        "without confidences, some chosen by a hash of the example. Below each "
        "picture, as the model saw it, are the correct category, the prediction with "
        "its confidence, and the example.",
        models=models,
    )
