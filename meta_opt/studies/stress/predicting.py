"""Predictions for test images: unchanged, corrupted, or from another data set."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.data.preprocessing.corruptions import corrupt
from meta_opt.data.sources.few_shot.stored import StoredFewShot, open_few_shot
from meta_opt.studies.stress.asked import Asked
from meta_opt.studies.stress.conditions import Condition
from meta_opt.studies.stress.held_out import (
    LabelledPictures,
    read_pictures,
    shift_labels,
    splits_of,
)
from meta_opt.studies.stress.predictions import Prediction
from meta_opt.studies.stress.settings import StressConfig
from meta_opt.studies.stress.subjects import Described, Subject, open_subject


class Predictor:
    """Predicts categories of test images, with one model in memory at a time.

    Args:
        config: settings of the test.
        data: few-shot data by width in pixels.
        asked: all prompts of the test.

    Attributes:
        shift: the other data set; None if there is none.
        shift_labels: maps classes of the other data set to categories.

    Raises:
        FileNotFoundError: missing data; the message has the command that writes them.
        ValueError: the other data set has none of the categories.
    """

    def __init__(
        self,
        config: StressConfig,
        data: Mapping[int, StoredFewShot],
        asked: tuple[Asked, ...],
    ) -> None:
        self._config, self._data, self._asked = config, data, asked
        self._classes = next(iter(data.values())).classes
        self.shift: StoredFewShot | None = None
        self.shift_labels: dict[str, str] = {}
        if config.shift.folder:
            self.shift = open_few_shot(config.shift.folder, 0, config.shift.variant)
            self.shift_labels = shift_labels(
                self._classes, self.shift.classes, config.shift.labels
            )
        self._read = functools.cache(self._pictures)
        # Caches the decoded images of two widths or data sets.
        self._arrays = functools.lru_cache(maxsize=2)(
            lambda px, data: self._read(px, data).read()
        )
        self._opened: tuple[str, Subject] | None = None

    def pictures(self, condition: Condition) -> LabelledPictures:
        """Returns the test images of a condition, before corruption."""
        return self._read(condition.test_px, condition.data)

    def setup(self, condition: Condition) -> dict[str, Any]:
        """Returns everything that the images depend on, without paths, as JSON."""
        config = self._config
        data = self.shift if condition.data else self._data[condition.test_px]
        assert data is not None
        found: dict[str, Any] = {
            "pictures": data.digest(data.held_out("test")),
            "per_class": config.data.per_class,
            "fitted": config.tests.fitted,
        }
        if condition.data:
            found["per_class"] = config.shift.per_class
            found["labels"] = self.shift_labels
        return found

    def predict(
        self,
        name: str,
        seed: int,
        described: Described,
        condition: Condition,
        asked: Asked,
    ) -> list[Prediction]:
        """Predicts all images under a condition.

        Args:
            name: name of the model in tables.
            seed: random seed of its training.
            described: the model.
            condition: the condition.
            asked: the prompt, for a generative model.

        Raises:
            ValueError: an image or the weights cannot be read.
        """
        tests = self._config.tests
        if self._opened is None or self._opened[0] != described.path:
            self._opened = None
            self._opened = (
                described.path,
                open_subject(described, self._asked, tests.answers, tests.batch_size),
            )
        pictures = self.pictures(condition)
        shown: list[np.ndarray] = self._arrays(condition.test_px, condition.data)
        if condition.corruption:
            shown = [
                corrupt(image, condition.corruption, condition.severity, key)
                for image, key in zip(shown, pictures.keys, strict=True)
            ]
        px = 0 if tests.fitted else condition.test_px
        answers = self._opened[1].answer(shown, asked, px)
        images = pictures.relative_to(Path(self._config.data.folder))
        return [
            Prediction(
                example=key,
                label=label,
                prediction=answer.category,
                model=name,
                seed=seed,
                condition=condition,
                confidence=answer.confidence,
                image=image,
            )
            for key, label, answer, image in zip(
                pictures.keys, pictures.labels, answers, images, strict=True
            )
        ]

    def _pictures(self, px: int, data: str) -> LabelledPictures:
        if not data:
            files = [self._data[px].held_out("test")]
            return read_pictures(files, self._classes, self._config.data.per_class)
        shift = self._config.shift
        return read_pictures(
            splits_of(open_few_shot(shift.folder, px, shift.variant)),
            self._classes,
            shift.per_class,
            self.shift_labels,
            prefix=f"{shift.name}/",
        )
