"""Settings of a stress test: data, models, and changes to test and training."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from meta_opt.data.preprocessing.corruptions import CORRUPTIONS
from meta_opt.data.preprocessing.prompts import TEMPLATES
from meta_opt.types import (
    check_distinct,
    check_keys,
    check_least,
    check_mapping,
    check_name,
    from_config,
)

ANSWERS = ("written", "likelihood")
_PLAIN = "plain"
_EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images for training and testing.

    Attributes:
        folder: few-shot data written by ``experiments/few_shot_data.py``.
        variant: variant of ``configs/few_shot_data.py`` that writes the folder, for
            error messages.
        per_class: maximum number of test images per class; 0 for all.
    """

    folder: str
    variant: str = "openclipart"
    per_class: int = 0

    def __post_init__(self) -> None:
        """Checks the range."""
        check_least("data", self, per_class=0)


@dataclasses.dataclass(frozen=True)
class TestsConfig:
    """Changes to the test, which need no further training.

    Attributes:
        widths: widths of test images in pixels; empty for all widths of the data.
        fitted: whether images are resized to the width that a model was trained at, as
            in normal use. Otherwise the network receives them at their own width, which
            convolutional networks support.
        corruptions: names in `meta_opt.data.preprocessing.corruptions`, each tested at
            all severities.
        shuffles: number of random orders of the list of categories.
        synonyms: other names of categories; empty to rename none.
        distractors: names of categories that no image shows.
        distractor_counts: numbers of distractors to add to the list.
        templates: names of other prompts in `meta_opt.data.preprocessing.prompts`.
        answers: ``written``, the leniently parsed text of a generative model, or
            ``likelihood``, the most likely answer of the list with its probability.
        batch_size: number of images per batch.
    """

    __test__ = False  # Not a test case for pytest.

    widths: tuple[int, ...] = ()
    fitted: bool = True
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    shuffles: int = 3
    synonyms: Mapping[str, str] = dataclasses.field(default_factory=lambda: _EMPTY)
    distractors: tuple[str, ...] = ()
    distractor_counts: tuple[int, ...] = ()
    templates: tuple[str, ...] = tuple(name for name in TEMPLATES if name != _PLAIN)
    answers: str = "written"
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        check_mapping("tests.synonyms", self.synonyms)
        for name in ("widths", "corruptions", "distractor_counts", "templates"):
            check_distinct(f"tests.{name}", getattr(self, name))
        check_name("tests.answers", self.answers, ANSWERS)
        for name in self.corruptions:
            check_name("tests.corruptions", name, CORRUPTIONS)
        for name in self.templates:
            check_name("tests.templates", name, TEMPLATES)
        check_least(
            "tests", self, widths=1, shuffles=0, distractor_counts=1, batch_size=1
        )
        if max(self.distractor_counts, default=0) > len(self.distractors):
            raise ValueError(
                f"tests.distractor_counts={self.distractor_counts}: there are "
                f"{len(self.distractors)} tests.distractors"
            )


@dataclasses.dataclass(frozen=True)
class ShiftConfig:
    """Another data set with images of the same categories, as a domain shift.

    Attributes:
        folder: few-shot data in the same format; "" to skip this test.
        variant: variant of ``configs/few_shot_data.py`` that writes the folder, for
            error messages.
        name: name in tables.
        labels: maps classes of the other data set to categories of the training data.
            Classes that are neither listed nor named like a category are not tested.
            None maps equal names.
        per_class: maximum number of images per class, from all splits because no model
            was trained on them; 0 for all.
    """

    folder: str = ""
    variant: str = "own"
    name: str = "shift"
    labels: Mapping[str, str] = dataclasses.field(default_factory=lambda: _EMPTY)
    per_class: int = 0

    def __post_init__(self) -> None:
        """Checks name and range."""
        check_mapping("shift.labels", self.labels)
        check_least("shift", self, per_class=0)
        if not self.name:
            raise ValueError("shift.name='' must be a name")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Changes to training; each value is a run of each learner with each seed.

    A run has ``epochs`` passes over its examples, but at least ``min_steps`` steps.

    Attributes:
        train_px: widths of training images in pixels. At each width a learner is
            trained on all examples and tested like the given models; all other changes
            use the first width.
        seeds: random seeds of the initialisation and the order of examples.
        shots: numbers of examples per class; the run without changes has all.
        label_noise: fractions of wrong labels.
        batch_sizes: batch sizes; the run without changes has the learner's own.
        epochs: passes over the examples.
        min_steps: minimum number of steps of a run.
        max_steps: maximum number of steps of a run; 0 for no limit.
    """

    train_px: tuple[int, ...] = (100,)
    seeds: tuple[int, ...] = (0,)
    shots: tuple[int, ...] = (1, 2, 4, 7)
    label_noise: tuple[float, ...] = (0.1, 0.2)
    batch_sizes: tuple[int, ...] = (1, 4, 16, 64)
    epochs: int = 3
    min_steps: int = 100
    max_steps: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_least(
            "training",
            self,
            train_px=1,
            seeds=0,
            shots=1,
            batch_sizes=1,
            epochs=1,
            min_steps=1,
            max_steps=0,
        )
        for name in ("train_px", "seeds", "shots", "label_noise", "batch_sizes"):
            check_distinct(f"training.{name}", getattr(self, name))
        if not self.train_px or not self.seeds:
            raise ValueError(
                "training.train_px and training.seeds must have at least one value each"
            )
        if any(not 0 <= share < 1 for share in self.label_noise):
            raise ValueError(
                f"training.label_noise={self.label_noise} must be from 0 to below 1"
            )
        if 0 < self.max_steps < self.min_steps:
            raise ValueError(
                f"training.max_steps={self.max_steps} is below min_steps="
                f"{self.min_steps}"
            )

    def steps(self, examples: int, batch_size: int) -> int:
        """Returns the length of a run; an epoch leaves out an incomplete last batch.

        >>> TrainingConfig(epochs=3, min_steps=10).steps(840, 64)
        39
        """
        steps = max(self.epochs * (examples // batch_size), self.min_steps)
        return min(steps, self.max_steps or steps)


@dataclasses.dataclass(frozen=True)
class StressConfig:
    """A stress test.

    Attributes:
        data: images for training and testing.
        tests: changes to the test.
        shift: another data set for the test.
        training: changes to training.
        models: paths of trained models by name, in the form of
            `meta_opt.load_exported`. Models whose names differ only in a suffix
            ``_100``, ``_200``, ..., a width of the data, count as one model that was
            trained at several widths.
        learners: settings of a run by name, see `meta_opt.studies.stress.learners`.
        baseline: name of the model to compare others with; "" for the first.
    """

    data: DataConfig
    tests: TestsConfig = dataclasses.field(default_factory=TestsConfig)
    shift: ShiftConfig = dataclasses.field(default_factory=ShiftConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    models: Mapping[str, str] = dataclasses.field(default_factory=lambda: _EMPTY)
    learners: Mapping[str, Any] = dataclasses.field(default_factory=lambda: _EMPTY)
    baseline: str = ""

    def __post_init__(self) -> None:
        """Checks that there is a model and that names are valid folder names."""
        if not self.models and not self.learners:
            raise ValueError(
                "no model to test: give models.NAME=FOLDER, or learners.NAME"
            )
        for section, names in (("models", self.models), ("learners", self.learners)):
            for name in names:
                if not name.replace("_", "").replace("-", "").isalnum():
                    raise ValueError(
                        f"{section}.{name}: use a name of letters, digits, _ and -"
                    )


def read_stress(settings: Mapping[str, Any], name: str = "config") -> StressConfig:
    """Builds the settings of a stress test from one nested mapping.

    Args:
        settings: the sections of `StressConfig`.
        name: name of the mapping, for error messages.

    Raises:
        ValueError: unknown keys, values of the wrong type or out of range, or no model.

    Example:
        >>> config = read_stress({
        ...     "data": {"folder": "data/few_shot/openclipart"},
        ...     "models": {"resnet50_100": "runs/resnet50/model"},
        ...     "tests": {"corruptions": ["contrast"]},
        ... })
        >>> config.tests.corruptions, config.training.shots
        (('contrast',), (1, 2, 4, 7))
    """
    check_keys(name, settings, [x.name for x in dataclasses.fields(StressConfig)])
    for section in ("models", "learners"):
        check_mapping(f"{name}.{section}", settings.get(section, {}))
    for model, folder in settings.get("models", {}).items():
        if not isinstance(folder, str) or not folder:
            raise ValueError(f"{name}.models.{model}={folder!r} must be a folder")
    return from_config(StressConfig, settings, name)
