"""Runs a stress test: trains short runs, and predicts with all models.

Finished parts are not repeated. Layout of a test's folder::

    predictions/NAME/seed_0/clean_100_px.jsonl   one for each model and condition
    predictions/NAME/seed_0/clean_100_px.json    settings and digests; written last
    trained/LEARNER/seed_0/clean_100_px/         one for each run
        data/                                    JSONL files of the training data
        run/metrics.jsonl ...                    files of the run
        model/ or model.safetensors              the model, without changes to training
        training.json                            settings and digests; written last
"""

import functools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from meta_opt.data.preprocessing.corruptions import SEVERITIES
from meta_opt.data.sources.few_shot.stored import StoredFewShot, open_few_shot
from meta_opt.parallel.workdir import hold_workdir
from meta_opt.provenance import provenance
from meta_opt.run_log import changed_settings
from meta_opt.studies.stress.asked import Asked, changed, plain
from meta_opt.studies.stress.conditions import Condition
from meta_opt.studies.stress.learners import (
    Examples,
    Learner,
    read_learner,
    read_training,
    run_of,
    setup_of,
    train,
)
from meta_opt.studies.stress.predicting import Predictor
from meta_opt.studies.stress.predictions import (
    Prediction,
    read_predictions,
    write_predictions,
)
from meta_opt.studies.stress.settings import StressConfig
from meta_opt.studies.stress.subjects import (
    Described,
    check_classes,
    check_width,
    describe,
)
from meta_opt.text_files import read_json, write_json

_PREDICTIONS = "predictions"
_TRAINING_COST = 3
"""Approximate cost of a training example relative to a prediction."""


class Unit(NamedTuple):
    """A unit of work: a part of the test that is run as a whole.

    Attributes:
        name: name for a progress bar.
        cost: approximate number of images that a model processes.
        record: file that is written when the unit is finished.
        setup: function that returns everything the outcome depends on, JSON values.
        run: function that runs the unit and returns the record without the setup.
    """

    name: str
    cost: int
    record: Path
    setup: Callable[[], dict[str, Any]]
    run: Callable[[], dict[str, Any]]


class Tested(NamedTuple):
    """A trained model to test.

    Attributes:
        name: name in tables.
        seed: random seed of the training.
        train_px: width of the training images in pixels.
        prompted: whether the model takes a prompt with the categories.
        described: function that returns the trained model; called after the training.
    """

    name: str
    seed: int
    train_px: int
    prompted: bool
    described: Callable[[], Described]


class StressTest:
    """Runs all parts of a stress test.

    Args:
        config: settings of the test.
        workdir: folder of the test.

    Attributes:
        data: few-shot data by width in pixels.
        classes: names of the K categories.
        shift_labels: maps classes of the other data set to categories.
        models: given models.
        learners: learners to train.

    Raises:
        FileNotFoundError: missing data; the message has the command that writes them.
        ValueError: data in another format, a folder without a model, a model with
            other classes than the data, or a width that a network does not support.
    """

    def __init__(self, config: StressConfig, workdir: str | Path) -> None:
        self.config, self.workdir = config, Path(workdir)
        folder, variant = config.data.folder, config.data.variant
        first = open_few_shot(folder, 0, variant)
        self.classes = first.classes
        wanted = config.tests.widths or first.widths
        # Raises for a width that the data do not have.
        self.data: dict[int, StoredFewShot] = {
            px: open_few_shot(folder, px, variant)
            for px in sorted({*first.widths, *wanted})
        }
        self._widths = tuple(sorted(wanted))
        self._plain = plain(self.classes, first.template)
        self._changed = changed(self.classes, first.template, config.tests)
        self._predictor = Predictor(config, self.data, (self._plain, *self._changed))
        self.shift_labels = self._predictor.shift_labels
        self._training_data = functools.cache(self._read_training)
        self.learners = [
            read_learner(name, settings, f"learners.{name}")
            for name, settings in config.learners.items()
        ]
        self.models = [self._given(name, path) for name, path in config.models.items()]
        self._check_names()
        for learner in self.learners:
            for px in config.training.train_px:
                open_few_shot(folder, px, variant)
                learner.check_width(px)
        # Check all files before hours of predictions.
        for px in self._widths:
            self._predictor.pictures(Condition(train_px=px, test_px=px))

    @property
    def names(self) -> list[str]:
        """Names of all models; given models come first."""
        every = (
            *(model.name for model in self.models),
            *(x.name for x in self.learners),
        )
        return list(dict.fromkeys(every))

    @property
    def test_pictures(self) -> int:
        """Number of test images."""
        px = self._widths[0]
        return len(self._predictor.pictures(Condition(train_px=px, test_px=px)))

    def remaining(self) -> int:
        """Returns the cost of all unfinished parts."""
        return sum(unit.cost for unit in self._units() if not unit.record.is_file())

    def run(
        self, announce: Callable[[str, int], None] = lambda name, cost: None
    ) -> None:
        """Runs all unfinished parts.

        Args:
            announce: called with name and cost of each part before it is run.

        Raises:
            Interrupted: on SIGINT or SIGTERM during a run, after saving.
            ValueError: a finished part has other settings or data, another process is
                running the test, or a run failed.
        """
        with hold_workdir(self.workdir):
            self._run(announce)

    def _run(self, announce: Callable[[str, int], None]) -> None:
        units = list(self._units())
        # Check finished parts first, before hours of other work.
        for unit in units:
            if unit.record.is_file():
                self._check_same(unit, unit.setup())
        for unit in units:
            if not unit.record.is_file():
                announce(unit.name, unit.cost)
                setup = unit.setup()
                record = {"setup": setup, **unit.run(), **provenance(setup)}
                write_json(unit.record, record)

    def predictions(self) -> list[Prediction]:
        """Returns the predictions of all finished parts, in the order of the test.

        Raises:
            ValueError: a file is damaged or was removed.
        """
        # Records of other folders are of trained models, which have no predictions.
        of_tests = self.workdir / _PREDICTIONS
        files = []
        for unit in self._units():
            if not unit.record.is_file() or of_tests not in unit.record.parents:
                continue
            files.append(unit.record.with_suffix(".jsonl"))
            if not files[-1].is_file():
                raise ValueError(
                    f"{files[-1]} is missing, but {unit.record.name} in the same "
                    "folder records a finished test: delete it to repeat the test"
                )
        return read_predictions(files) if files else []

    def baseline(self, predictions: Iterable[Prediction]) -> str:
        """Returns the model that the others are compared with in a report.

        It is that of the settings, by default the first one that was tested; "" while
        none of its tests is finished, as after an interruption.
        """
        tested = {one.model for one in predictions}
        if given := self.config.baseline:
            return given if given in tested else ""
        return next((name for name in self.names if name in tested), "")

    def _check_same(self, unit: Unit, setup: Mapping[str, Any]) -> None:
        record = read_json(unit.record)
        before = record.get("setup")
        if not isinstance(before, Mapping):
            raise ValueError(
                f"{unit.record} is not a record of a stress test; remove it to rerun it"
            )
        if differing := changed_settings(before, setup):
            raise ValueError(
                f"{unit.record} is of other settings or data ({'; '.join(differing)}); "
                "restore these settings to resume, or use another --workdir"
            )

    # Parts of the test

    def _units(self) -> Iterator[Unit]:
        for model in self.models:
            yield from self._tests_of(model)
        training = self.config.training
        for learner in self.learners:
            for seed in training.seeds:
                for px in training.train_px:
                    condition = Condition(train_px=px, test_px=px)
                    unit = self._training(learner, seed, condition)
                    yield unit
                    yield from self._tests_of(
                        self._trained(learner, seed, px, unit.record)
                    )
                for condition in self._changes(learner):
                    yield self._training(learner, seed, condition)

    def _changes(self, learner: Learner) -> list[Condition]:
        """Returns the training conditions, each with one change."""
        training = self.config.training
        px = training.train_px[0]
        train_rows = self._training_data(px).rows["train"]
        per_class = len(train_rows) // len(self.classes)
        made: list[dict[str, Any]] = [
            *({"shots": n} for n in training.shots if n != per_class),
            *({"label_noise": share} for share in training.label_noise if share),
            *(
                {"batch_size": n}
                for n in training.batch_sizes
                if n != learner.batch_size
            ),
        ]
        return [Condition(train_px=px, test_px=px, **change) for change in made]

    def _tests_of(self, model: Tested) -> Iterator[Unit]:
        px = model.train_px
        base = Condition(train_px=px, test_px=px)
        yield self._test(model, base, self._plain)
        for width in self._widths:
            if width != px:
                condition = Condition(train_px=px, test_px=width)
                yield self._test(model, condition, self._plain)
        for name in self.config.tests.corruptions:
            for severity in SEVERITIES:
                condition = Condition(name, severity, train_px=px, test_px=px)
                yield self._test(model, condition, self._plain)
        if (shift := self._predictor.shift) is not None:
            near = min(shift.widths, key=lambda width: (abs(width - px), width))
            name = self.config.shift.name
            condition = Condition(train_px=px, test_px=near, data=name)
            yield self._test(model, condition, self._plain)
        if model.prompted:
            for asked in self._changed:
                condition = Condition(train_px=px, test_px=px, prompt=asked.name)
                yield self._test(model, condition, asked)

    # Tests

    def _test(self, model: Tested, condition: Condition, asked: Asked) -> Unit:
        folder = self.workdir / _PREDICTIONS / model.name / f"seed_{model.seed}"
        record = folder / f"{_slug(condition)}.json"

        def setup() -> dict[str, Any]:
            return {
                "weights": model.described().digest,
                **self._predictor.setup(condition),
                **({"asked": asked.prompt} if model.prompted else {}),
                **({"answers": self.config.tests.answers} if model.prompted else {}),
            }

        def run() -> dict[str, Any]:
            found = self._predictor.predict(
                model.name, model.seed, model.described(), condition, asked
            )
            write_predictions(record.with_suffix(".jsonl"), found)
            return {}

        pictures = self._predictor.pictures(condition)
        return Unit(
            f"{model.name}, {condition.name}", len(pictures), record, setup, run
        )

    # Models

    def _given(self, name: str, path: str) -> Tested:
        where = f"models.{name}"
        described = describe(where, path)
        check_classes(where, described, self.classes)
        if not self.config.tests.fitted:
            for px in self._widths:
                check_width(where, described, px)
        stem, _, end = name.rpartition("_")
        px = int(end) if stem and end.isdigit() and int(end) in self.data else 0
        if not described.prompted:
            if described.image_size not in self.data:
                raise ValueError(
                    f"{where}={path!r} was trained at {described.image_size} pixels; "
                    f"{self.config.data.folder} has {', '.join(map(str, self.data))}: "
                    "write the data at that width too, with --config.protocol.widths"
                )
            if px != described.image_size:
                stem, px = name, described.image_size
        elif not px:
            # The training width is not recorded; use the input size of the image tower.
            enough = [x for x in self.data if x >= described.image_size]
            stem, px = name, min(enough, default=max(self.data))
        return Tested(stem, 0, px, described.prompted, lambda: described)

    def _check_names(self) -> None:
        seen: set[tuple[str, int]] = set()
        for model in self.models:
            if (key := (model.name, model.train_px)) in seen:
                raise ValueError(
                    f"two models are {model.name!r} at {model.train_px} pixels; give "
                    "one of them another name"
                )
            seen.add(key)
        given = {model.name for model in self.models}
        for learner in self.learners:
            if learner.name in given:
                raise ValueError(
                    f"learners.{learner.name} has the name of a model; give it another"
                )
        if (baseline := self.config.baseline) and baseline not in self.names:
            raise ValueError(
                f"baseline={baseline!r} must be one of {', '.join(self.names)}"
            )

    def _trained(self, learner: Learner, seed: int, px: int, record: Path) -> Tested:
        @functools.cache
        def described() -> Described:
            return describe(
                f"learners.{learner.name}", record.parent / "model", learner.processor
            )

        return Tested(learner.name, seed, px, not learner.classifies, described)

    # Training

    def _read_training(self, px: int) -> Examples:
        return read_training(self.data[px], self._plain.prompt)

    def _training(self, learner: Learner, seed: int, condition: Condition) -> Unit:
        """Returns a unit that trains a model.

        With a change to training, the unit includes the test, and the model is deleted.
        """
        kept = condition.reference is None
        px, slug = condition.train_px, _slug(condition)
        folder = self.workdir / "trained" / learner.name / f"seed_{seed}" / slug
        examples = self._training_data(px).changed(condition)
        count = len(examples.rows["train"])
        batch_size = condition.batch_size or min(learner.batch_size, count)
        if batch_size > count:
            raise ValueError(
                f"training.batch_sizes={batch_size} is more than the {count} training "
                "examples"
            )
        steps = self.config.training.steps(count, batch_size)
        record = folder / "training.json"
        if not kept:
            predictions = self.workdir / _PREDICTIONS / learner.name / f"seed_{seed}"
            record = predictions / f"{slug}.json"
        features = str(self.workdir / "features") if learner.classifies else ""
        run = functools.cache(
            lambda: run_of(
                learner, folder, examples, px, seed, batch_size, steps, features
            )
        )

        def setup() -> dict[str, Any]:
            data = self.data[px]
            files = (data.train(data.phases, True), data.held_out("validation"))
            return {
                **setup_of(run()),
                "files": [data.digest(file) for file in files],
                "change": condition.to_json(),
                **({} if kept else self._predictor.setup(condition)),
            }

        def carry_out() -> dict[str, Any]:
            examples.write(folder / "data")
            train(run(), folder)
            if not kept:
                where = f"learners.{learner.name}"
                described = describe(where, folder / "model", learner.processor)
                found = self._predictor.predict(
                    learner.name, seed, described, condition, self._plain
                )
                write_predictions(record.with_suffix(".jsonl"), found)
                _remove_model(folder)
            # Checkpoints are not needed any more.
            shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
            return {"steps": steps, "examples": count}

        cost = _TRAINING_COST * steps * batch_size + self.test_pictures
        name = f"training {learner.name}, {condition.name}"
        return Unit(name, cost, record, setup, carry_out)


def _remove_model(folder: Path) -> None:
    shutil.rmtree(folder / "model", ignore_errors=True)
    for suffix in (".safetensors", ".json"):
        (folder / f"model{suffix}").unlink(missing_ok=True)


def _slug(condition: Condition) -> str:
    """Converts a name to a file name.

    >>> _slug(Condition("grey", 2, train_px=100, test_px=200))
    'grey_2_100_px_to_200_px'
    """
    return re.sub(r"\W+", "_", condition.name.lower()).strip("_")
