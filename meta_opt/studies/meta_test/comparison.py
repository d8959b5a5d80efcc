"""The protocol of the meta-test: an untuned optimizer against tuned baselines.

Optimizers are compared at the end of training with fixed budgets, as in MLCommons
AlgoPerf (Dahl et al. 2023, arXiv:2306.07179). Baselines are tuned and run at the full
budget. The subject, that is, the evaluated optimizer, is run without tuning at the full
budget and at fractions of it.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from meta_opt.metrics.geometric_mean import geometric_mean
from meta_opt.metrics.intervals import Interval, interval
from meta_opt.optimizers.baselines import CORE_BASELINES
from meta_opt.studies.meta_test.records import Record, Run, make_run
from meta_opt.tasks.inner_run import InnerRun
from meta_opt.types import PyTree

BUDGETS = (1.0, 0.75, 0.6, 0.5, 0.35, 0.25)
MISS = 4.0
"""Budget that stands in for a target that is never reached."""
_REFERENCE = "adamw"
_CLOSE = 0.05
_EQUAL = 1e-4
"""Percentage points within which accuracies count as equal, for float32 rounding."""
POOR_BELOW = 0.9
"""A run is poor if its test accuracy is below this fraction of tuned AdamW's mean."""


def measure(
    run: InnerRun,
    num_steps: int,
    seeds: Sequence[int],
    settings: PyTree,
    budgets: Sequence[float] = (1.0,),
) -> tuple[Run, ...]:
    """Runs an optimizer at each budget.

    Args:
        run: program that trains on the task with the optimizer.
        num_steps: the full budget.
        seeds: random seeds, the same for all optimizers.
        settings: settings of the optimizer.
        budgets: fractions of ``num_steps``.
    """
    runs = []
    for budget in budgets:
        steps = max(1, round(budget * num_steps))
        outcome, seconds = run(seeds, steps, settings)
        runs.append(make_run(budget, steps, outcome, seconds))
    return tuple(runs)


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """The subject compared with the baselines on one task.

    Losses are means over seeds, infinite if a seed failed. The baseline that is best in
    loss has the lowest mean validation loss. The baseline that is best in accuracy has
    the highest mean *test* accuracy, which favours the baselines.

    Attributes:
        task: name of the task.
        num_steps: the full budget.
        budget_to_adamw: smallest budget at which the validation loss is at or below
            that of tuned AdamW at the full budget; `MISS` if there is none.
        budget_to_best_of_five: smallest budget at which the validation loss is at or
            below that of the core baseline that is best in loss; `MISS` if none.
        validation_loss: validation loss of the subject at the full budget.
        adamw_validation_loss: validation loss of tuned AdamW.
        best_of_five: name of the core baseline that is best in loss.
        best_of_five_validation_loss: validation loss of ``best_of_five``.
        best_of_all: name of the baseline that is best in loss.
        best_of_all_validation_loss: validation loss of ``best_of_all``.
        test_accuracy: test accuracy of the subject, percent; a failed seed counts as 0.
        accuracy_over_adamw: gain in test accuracy over tuned AdamW in percentage
            points, paired by seed.
        accuracy_over_best_of_five: the same gain over the core baseline that is best in
            accuracy.
        accuracy_over_best_of_all: the same gain over the baseline that is best in
            accuracy.
        as_accurate_as_best_of_five: whether the mean of `accuracy_over_best_of_five`
            is not negative, up to rounding.
        close_to_best_of_all: whether the subject's loss is at most 5% above that of
            ``best_of_all``.
        failures: number of the subject's failed runs over all budgets.
        runs: number of the subject's runs over all budgets.
        loss_over_hand_designed: the subject's validation loss over that of the
            hand-designed rule at the full budget; infinite if a seed of the subject
            failed, None if the rule was not run or failed.
        poor_runs: seeds at the full budget that are not finite or less accurate than
            `POOR_BELOW` of tuned AdamW's mean.
        seconds: time of one run of the subject at the full budget.
        adamw_seconds: time of one run of AdamW.
        adamw_tuning_seconds: time of AdamW's hyperparameter search.
        time_ratio: ratio of ``seconds`` to AdamW's; None if measured on different
            machines.
        time_ratio_with_tuning: ratio of ``seconds`` to AdamW's including its search;
            None if measured on different machines.
    """

    task: str
    num_steps: int
    budget_to_adamw: float
    budget_to_best_of_five: float
    validation_loss: float
    adamw_validation_loss: float
    best_of_five: str
    best_of_five_validation_loss: float
    best_of_all: str
    best_of_all_validation_loss: float
    test_accuracy: float
    accuracy_over_adamw: Interval
    accuracy_over_best_of_five: Interval
    accuracy_over_best_of_all: Interval
    as_accurate_as_best_of_five: bool
    close_to_best_of_all: bool
    failures: int
    runs: int
    loss_over_hand_designed: float | None
    poor_runs: int
    seconds: float
    adamw_seconds: float
    adamw_tuning_seconds: float
    time_ratio: float | None
    time_ratio_with_tuning: float | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """The subject over all tasks.

    Attributes:
        subject: name of the evaluated optimizer.
        tasks: number of tasks.
        budget_to_adamw: geometric mean over tasks.
        budget_to_best_of_five: geometric mean over tasks.
        accuracy_over_adamw: percentage points, mean and interval over tasks.
        accuracy_over_best_of_five: percentage points, mean and interval over tasks.
        accuracy_over_best_of_all: percentage points, mean and interval over tasks.
        share_as_accurate_as_best_of_five: fraction of the tasks, in [0, 1].
        share_close_to_best_of_all: fraction of the tasks, in [0, 1].
        misses: number of tasks on which AdamW's loss was not reached at any budget.
        failures: number of failed runs.
        runs: number of runs.
        worst_over_hand_designed: largest ratio over tasks of the loss to the
            hand-designed rule's; None if the rule was not run.
        worst_task: task with the largest ratio.
        poor_runs: seeds at the full budget that are not finite or less accurate than
            `POOR_BELOW` of tuned AdamW's mean.
        time_ratio: geometric mean over the tasks where it is known.
        time_ratio_with_tuning: geometric mean over the tasks where it is known.
    """

    subject: str
    tasks: int
    budget_to_adamw: float
    budget_to_best_of_five: float
    accuracy_over_adamw: Interval
    accuracy_over_best_of_five: Interval
    accuracy_over_best_of_all: Interval
    share_as_accurate_as_best_of_five: float
    share_close_to_best_of_all: float
    misses: int
    failures: int
    runs: int
    worst_over_hand_designed: float | None
    worst_task: str | None
    poor_runs: int
    time_ratio: float | None
    time_ratio_with_tuning: float | None


def budget_to(runs: Sequence[Run], target: float) -> float:
    """Returns the smallest budget whose mean validation loss is at or below ``target``.

    A budget with a failed run does not count. Returns `MISS` if there is none.
    """
    losses = {run.budget: run.mean_validation_loss for run in runs}
    reached = [b for b, x in losses.items() if math.isfinite(x) and x <= target]
    return min(reached, default=MISS)


def compare(
    subject: Record,
    baselines: Mapping[str, Record],
    hand_designed: Record | None = None,
) -> TaskRow:
    """Compares a subject with tuned baselines on one task.

    Args:
        subject: record of the subject at the full budget and at fractions of it.
        baselines: records by name, including AdamW. The best of five is chosen among
            those in `CORE_BASELINES`.
        hand_designed: record of the hand-designed rule, untuned.

    Raises:
        ValueError: AdamW is missing, or the records have different tasks, steps or
            seeds.
    """
    if _REFERENCE not in baselines:
        raise ValueError(f"{subject.task}: no result of {_REFERENCE}; measure it first")
    others = dict(baselines)
    if hand_designed is not None:
        others[hand_designed.optimizer] = hand_designed
    for name, record in others.items():
        for what in ("num_steps", "seeds"):
            ours, theirs = subject.setup[what], record.setup[what]
            if subject.task != record.task or ours != theirs:
                raise ValueError(
                    f"{subject.optimizer} and {name} do not compare: {what} is {ours} "
                    f"and {theirs}, task {subject.task} and {record.task}"
                )
    adamw = baselines[_REFERENCE]
    core = [name for name in baselines if name in CORE_BASELINES]
    losses = {n: r.full.mean_validation_loss for n, r in baselines.items()}
    accuracies = {n: 100 * r.full.test_accuracy for n, r in baselines.items()}
    ours, ours_accuracy = subject.full, 100 * subject.full.test_accuracy

    def least(names: Iterable[str]) -> str:
        return min(names, key=losses.__getitem__)

    def over(names: Iterable[str]) -> Interval:
        best = max(names, key=lambda name: float(np.mean(accuracies[name])))
        return interval(ours_accuracy - accuracies[best])

    best_of_five, best_of_all = least(core), least(baselines)
    over_core = over(core)
    bound = losses[best_of_all] + _CLOSE * abs(losses[best_of_all])
    same_machine = _machine(subject) == _machine(adamw)
    alone, searched = adamw.full.seconds, adamw.full.seconds + adamw.tuning_seconds
    return TaskRow(
        task=subject.task,
        num_steps=ours.num_steps,
        budget_to_adamw=budget_to(subject.runs, losses[_REFERENCE]),
        budget_to_best_of_five=budget_to(subject.runs, losses[best_of_five]),
        validation_loss=ours.mean_validation_loss,
        adamw_validation_loss=losses[_REFERENCE],
        best_of_five=best_of_five,
        best_of_five_validation_loss=losses[best_of_five],
        best_of_all=best_of_all,
        best_of_all_validation_loss=losses[best_of_all],
        test_accuracy=float(np.mean(ours_accuracy)),
        accuracy_over_adamw=over([_REFERENCE]),
        accuracy_over_best_of_five=over_core,
        accuracy_over_best_of_all=over(baselines),
        as_accurate_as_best_of_five=over_core.mean >= -_EQUAL,
        close_to_best_of_all=ours.failures == 0 and ours.mean_validation_loss <= bound,
        failures=sum(run.failures for run in subject.runs),
        runs=sum(len(run.validation_loss) for run in subject.runs),
        loss_over_hand_designed=_ratio(ours, hand_designed),
        poor_runs=_poor(ours, float(np.mean(accuracies[_REFERENCE]))),
        seconds=ours.seconds,
        adamw_seconds=alone,
        adamw_tuning_seconds=adamw.tuning_seconds,
        time_ratio=ours.seconds / alone if same_machine else None,
        time_ratio_with_tuning=ours.seconds / searched if same_machine else None,
    )


def _ratio(ours: Run, hand_designed: Record | None) -> float | None:
    if hand_designed is None:
        return None
    theirs = hand_designed.full.mean_validation_loss
    if not math.isfinite(theirs) or theirs <= 0:
        return None
    return ours.mean_validation_loss / theirs


def _poor(run: Run, accuracy: float) -> int:
    """Counts poor runs, see `POOR_BELOW`; ``accuracy`` is AdamW's in percent."""
    poor = 100 * run.test_accuracy < POOR_BELOW * accuracy - _EQUAL
    failed = [loss is None for loss in run.validation_loss]
    return int(np.sum(poor | np.asarray(failed)))


@dataclasses.dataclass(frozen=True)
class FinalRow:
    """One optimizer at the full budget of one task.

    Attributes:
        task: name of the task.
        optimizer: name of the optimizer.
        validation_loss: mean over seeds, infinite if one failed.
        validation_accuracy: percent, mean over seeds; a failed seed counts as 0.
        test_accuracy: percent, mean over seeds; a failed seed counts as 0.
        failures: number of failed seeds.
        seconds: time of one run.
        tuning_seconds: time of the hyperparameter search.
        compile_seconds: compilation time of the program.
        settings: tuned settings.
    """

    task: str
    optimizer: str
    validation_loss: float
    validation_accuracy: float
    test_accuracy: float
    failures: int
    seconds: float
    tuning_seconds: float
    compile_seconds: float
    settings: dict[str, float]


def final(record: Record) -> FinalRow:
    """Returns the results of a record at the full budget."""
    run = record.full
    return FinalRow(
        task=record.task,
        optimizer=record.optimizer,
        validation_loss=run.mean_validation_loss,
        validation_accuracy=100 * float(np.mean(run.validation_accuracy)),
        test_accuracy=100 * float(np.mean(run.test_accuracy)),
        failures=run.failures,
        seconds=run.seconds,
        tuning_seconds=record.tuning_seconds,
        compile_seconds=record.compile_seconds,
        settings=record.settings,
    )


def summarise(subject: str, rows: Sequence[TaskRow]) -> Summary:
    """Summarises the rows of one subject: geometric means, shares and counts.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError(f"no tasks to summarise for {subject!r}")
    ratios = {
        row.task: row.loss_over_hand_designed
        for row in rows
        if row.loss_over_hand_designed is not None
    }
    worst = max(ratios, key=ratios.__getitem__, default=None)
    return Summary(
        subject=subject,
        tasks=len(rows),
        budget_to_adamw=geometric_mean(row.budget_to_adamw for row in rows),
        budget_to_best_of_five=geometric_mean(
            row.budget_to_best_of_five for row in rows
        ),
        accuracy_over_adamw=interval(row.accuracy_over_adamw.mean for row in rows),
        accuracy_over_best_of_five=interval(
            row.accuracy_over_best_of_five.mean for row in rows
        ),
        accuracy_over_best_of_all=interval(
            row.accuracy_over_best_of_all.mean for row in rows
        ),
        share_as_accurate_as_best_of_five=float(
            np.mean([row.as_accurate_as_best_of_five for row in rows])
        ),
        share_close_to_best_of_all=float(
            np.mean([row.close_to_best_of_all for row in rows])
        ),
        misses=sum(row.budget_to_adamw == MISS for row in rows),
        failures=sum(row.failures for row in rows),
        runs=sum(row.runs for row in rows),
        worst_over_hand_designed=None if worst is None else ratios[worst],
        worst_task=worst,
        poor_runs=sum(row.poor_runs for row in rows),
        time_ratio=_known(row.time_ratio for row in rows),
        time_ratio_with_tuning=_known(row.time_ratio_with_tuning for row in rows),
    )


def _known(values: Iterable[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return geometric_mean(known) if known else None


def _machine(record: Record) -> tuple:
    """Returns the parts of a record's environment that timings depend on."""
    found = record.environment
    return found.get("platform"), found.get("device"), found.get("device_count")
