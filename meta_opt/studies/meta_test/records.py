"""Records of the meta-test: the results of one optimizer on one task, as JSON files."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.run_log import describe_environment, settings_digest
from meta_opt.tasks.fingerprint import same_task
from meta_opt.tasks.inner_run import Outcome
from meta_opt.text_files import plain_json, read_json, write_json
from meta_opt.types import from_config

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Run:
    """The outcomes of all seeds at one budget.

    Attributes:
        budget: fraction of the task's full budget.
        num_steps: number of steps.
        validation_loss: final loss of each seed; None if the run failed.
        validation_error: error rate of each seed in [0, 1]; None if the run failed.
        test_loss: final loss of each seed; None if the run failed.
        test_error: error rate of each seed in [0, 1]; None if the run failed.
        seconds: time of one seed, without compilation.
    """

    budget: float
    num_steps: int
    validation_loss: tuple[float | None, ...]
    validation_error: tuple[float | None, ...]
    test_loss: tuple[float | None, ...]
    test_error: tuple[float | None, ...]
    seconds: float

    @property
    def failures(self) -> int:
        """Number of failed seeds."""
        return self.validation_loss.count(None)

    @property
    def mean_validation_loss(self) -> float:
        """Mean validation loss over seeds; infinite if one failed."""
        return _mean(self.validation_loss)

    @property
    def mean_test_loss(self) -> float:
        """Mean test loss over seeds; infinite if one failed."""
        return _mean(self.test_loss)

    @property
    def validation_accuracy(self) -> np.ndarray:
        """Validation accuracy of each seed in [0, 1]; 0 if it failed."""
        return _accuracy(self.validation_error)

    @property
    def test_accuracy(self) -> np.ndarray:
        """Test accuracy of each seed in [0, 1]; 0 if it failed."""
        return _accuracy(self.test_error)


def _mean(losses: tuple[float | None, ...]) -> float:
    return float(np.mean([math.inf if x is None else x for x in losses]))


def _accuracy(errors: tuple[float | None, ...]) -> np.ndarray:
    return np.array([0.0 if x is None else 1.0 - x for x in errors])


@dataclasses.dataclass(frozen=True)
class Record:
    """The results of one optimizer on one task.

    Attributes:
        task: name of the task.
        optimizer: name of the baseline or rule; ``learned:NAME`` for weights NAME.
        fingerprint: fingerprint of the task.
        setup: everything else that the outcomes depend on; if the current setup
            differs, the record is stale.
        settings: tuned settings; empty for untuned optimizers.
        trials: trials of the hyperparameter search.
        runs: one run for each budget, the full budget first.
        tuning_seconds: time of all trials; 0 if there are none.
        compile_seconds: compilation time of the program.
        environment: revision of the code, versions of packages, and device.
    """

    task: str
    optimizer: str
    fingerprint: dict[str, Any]
    setup: dict[str, Any]
    settings: dict[str, Any]
    trials: tuple[dict[str, Any], ...]
    runs: tuple[Run, ...]
    tuning_seconds: float = 0.0
    compile_seconds: float = 0.0
    environment: dict[str, Any] = dataclasses.field(
        default_factory=describe_environment
    )

    @property
    def full(self) -> Run:
        """The run at the full budget."""
        return next(run for run in self.runs if run.budget == 1.0)


def make_run(budget: float, num_steps: int, outcome: Outcome, seconds: float) -> Run:
    """Builds a run from the outcome of several seeds; failed seeds become None."""
    failed = outcome.failed()
    values = {
        name: tuple(
            None if bad else float(x) for x, bad in zip(xs, failed, strict=True)
        )
        for name, xs in outcome._asdict().items()
    }
    return Run(budget=budget, num_steps=num_steps, seconds=seconds, **values)


def write_record(path: str | Path, record: Record) -> None:
    """Writes a record, atomically."""
    config = {"task": record.task, "optimizer": record.optimizer, "setup": record.setup}
    values = {"digest": settings_digest(config), **dataclasses.asdict(record)}
    write_json(path, {"format": FORMAT, **values}, indent=1)


def read_record(path: str | Path) -> Record:
    """Reads a file that `write_record` wrote.

    Raises:
        ValueError: another kind of file or a damaged one; the message says what to do.
    """
    try:
        values = read_json(path)
        if values.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        values.pop("digest", None)  # For readers; older records have none.
        runs = tuple(from_config(Run, run) for run in values.pop("runs"))
        record = from_config(Record, {**values, "runs": runs})
        if not any(run.budget == 1 for run in runs):
            raise ValueError("no run at the full budget")
        return record
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a result of this meta-test ({error}); delete it to measure "
            "again"
        ) from None


def baseline_losses(
    results: str | Path, tasks: Iterable[str], baseline: str
) -> dict[str, tuple[float, float]]:
    """Returns final validation and test losses of a tuned baseline, means over seeds.

    Args:
        results: folder of the meta-test's results.
        tasks: names of tasks.
        baseline: name of the baseline.

    Raises:
        FileNotFoundError: the baseline has not been measured on a task.
    """
    full = {
        name: read_record(Path(results, name, f"{baseline}.json")).full
        for name in tasks
    }
    return {
        name: (run.mean_validation_loss, run.mean_test_loss)
        for name, run in full.items()
    }


def fresh_record(
    path: str | Path, fingerprint: Mapping[str, Any], setup: Mapping[str, Any]
) -> Record | None:
    """Reads a record, if there is one, and checks that it is not stale.

    Args:
        path: the JSON file.
        fingerprint: fingerprint of the current task.
        setup: the current setup.

    Returns:
        The record, or None if there is no file.

    Raises:
        ValueError: a record of another task or setup; the message says what to do.
    """
    if not Path(path).is_file():
        return None
    record = read_record(path)
    now = plain_json(dict(setup))
    changed = [
        f"{key} was {record.setup.get(key)}, is {now.get(key)}"
        for key in sorted(now.keys() | record.setup.keys())
        if record.setup.get(key) != now.get(key)
    ]
    if not same_task(record.fingerprint, fingerprint):
        changed.insert(0, f"the task {record.task!r} changed")
    if changed:
        raise ValueError(
            f"{path} is stale: {'; '.join(changed)}. Delete it (and its study) to "
            "measure again, or write elsewhere with --config.results=FOLDER"
        )
    return record
