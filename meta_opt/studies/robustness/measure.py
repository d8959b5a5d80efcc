"""Final losses of optimizers under adverse conditions, with and without the safeguard.

Four contenders on each task under each condition: the learned optimizer and the
hand-designed rule, both with and without the safeguard. The reference is the guarded
hand-designed rule, which the safeguard falls back to, under the same condition, with
the same initial parameters and batches.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from meta_opt.metrics.geometric_mean import geometric_mean
from meta_opt.optimizers.hand_designed import hand_designed
from meta_opt.optimizers.weights import load_theta
from meta_opt.tasks.inner_run import InnerRun, MakeOptimizer, learned_on
from meta_opt.tasks.perturbations import CONDITIONS, Condition
from meta_opt.tasks.task import Task
from meta_opt.types import near_match

GUARDED = "learned, guarded"
FALLBACK = "hand-designed, guarded"
CONTENDERS = (GUARDED, "learned", FALLBACK, "hand-designed")
ORDINARY = "ordinary"
TOLERANCE = 0.05
"""Relative increase above which a loss counts as worse."""


@dataclasses.dataclass(frozen=True)
class RobustnessConfig:
    """Tasks, conditions and seeds.

    Attributes:
        tasks: names of task families.
        weights: weights of the learned optimizer: a shipped name or a path.
        conditions: names in `meta_opt.tasks.perturbations.CONDITIONS`, including the
            ordinary one; empty for all.
        num_steps: steps of an ordinary run by task; the default is the largest horizon
            of its meta-training.
        seeds: random seeds of initialisation, batches and perturbations.
    """

    tasks: tuple[str, ...]
    weights: str
    conditions: tuple[str, ...] = ()
    num_steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self) -> None:
        """Checks names."""
        if not self.tasks or not self.seeds:
            raise ValueError("tasks and seeds need at least one entry each")
        for name in self.conditions:
            if name not in CONDITIONS:
                raise ValueError(
                    f"unknown condition {name!r}{near_match(name, CONDITIONS)}; "
                    f"available: {', '.join(CONDITIONS)}"
                )
        if self.conditions and ORDINARY not in self.conditions:
            raise ValueError(f"conditions lack {ORDINARY!r}, for comparison")
        if unknown := set(self.num_steps) - set(self.tasks):
            raise ValueError(f"num_steps names {sorted(unknown)}, not among the tasks")

    def chosen(self) -> dict[str, Condition]:
        """Returns the conditions by name."""
        names = self.conditions or tuple(CONDITIONS)
        return {name: CONDITIONS[name] for name in names}

    def steps(self, task: Task) -> int:
        """Returns the steps of an ordinary run."""
        return self.num_steps.get(task.name, task.horizons[1])


@dataclasses.dataclass(frozen=True)
class RunOutcome:
    """The final losses of one contender under one condition.

    Attributes:
        task: name of the task.
        condition: name of the condition.
        contender: one of `CONTENDERS`.
        num_steps: length of the runs.
        start: validation loss of each seed before the run.
        loss: validation loss of each seed after the run; infinite if a loss of the run
            is not finite.
    """

    task: str
    condition: str
    contender: str
    num_steps: int
    start: tuple[float, ...]
    loss: tuple[float, ...]

    @property
    def failures(self) -> int:
        """Number of failed seeds.

        A run has failed if its final loss is not finite, or more than 5% above that at
        initialisation. The margin is for conditions under which nothing can be learned,
        such as a constant loss: no progress is not a failure, nor is the effect of
        weight decay, but divergence is. A run that overfits beyond its initial loss has
        failed too, with any optimizer.
        """
        pairs = zip(self.loss, self.start, strict=True)
        return sum(not loss <= (1 + TOLERANCE) * start for loss, start in pairs)

    @property
    def mean_loss(self) -> float:
        """Mean of the final losses over seeds."""
        return float(np.mean(self.loss))


def measure(task: Task, config: RobustnessConfig) -> Iterator[RunOutcome]:
    """Yields the outcome of each contender under each condition, by contender.

    Args:
        task: the task, without perturbations.
        config: weights, conditions, steps and seeds.

    Raises:
        ValueError: missing or damaged weights.
    """
    for contender in CONTENDERS:
        make, settings = _optimizer(contender, task, config.weights)
        run = InnerRun(task, make, seeds_at_once=len(config.seeds))
        start, _ = run(config.seeds, 0, settings, Condition())
        for name, condition in config.chosen().items():
            steps = max(1, round(float(condition.length) * config.steps(task)))
            outcome, _ = run(config.seeds, steps, settings, condition)
            losses = np.where(outcome.failed(), math.inf, outcome.validation_loss)
            yield RunOutcome(
                task=task.name,
                condition=name,
                contender=contender,
                num_steps=steps,
                start=tuple(map(float, start.validation_loss)),
                loss=tuple(map(float, losses)),
            )


def _optimizer(contender: str, task: Task, weights: str) -> tuple[MakeOptimizer, Any]:
    """Builds a contender with the settings that are arguments of its program."""
    guard = contender.endswith("guarded")
    if not contender.startswith("learned"):
        return (
            lambda n, _: hand_designed(n, stacked=task.stacked, safeguard=guard)
        ), {}
    theta, config = load_theta(weights)
    return learned_on(task, config, safeguard=guard), theta


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """The guarded learned optimizer against the fallback on one task and condition.

    Attributes:
        task: name of the task.
        condition: name of the condition.
        ratio: ratio of the mean final validation loss to that of the guarded
            hand-designed rule under the same condition; infinite if the loss of a seed
            is not finite.
        over_ordinary: ``ratio`` divided by the ratio of an ordinary run. A value above
            1 is an effect of the condition.
        worse: whether the ratio is above 1.05.
    """

    task: str
    condition: str
    ratio: float
    over_ordinary: float
    worse: bool


@dataclasses.dataclass(frozen=True)
class ConditionRow:
    """One condition over all tasks.

    Attributes:
        condition: name of the condition.
        runs: number of runs of each contender.
        failures: failed runs by contender, see `RunOutcome.failures`.
        ratio: geometric mean over tasks of `TaskRow.ratio`.
        worst_ratio: largest ratio of a task.
        worst_task: task with the largest ratio.
        over_ordinary: geometric mean over tasks of `TaskRow.over_ordinary`.
        worse: number of tasks with a final loss more than 5% above the fallback's.
    """

    condition: str
    runs: int
    failures: dict[str, int]
    ratio: float
    worst_ratio: float
    worst_task: str
    over_ordinary: float
    worse: int


def compare(outcomes: Sequence[RunOutcome]) -> tuple[list[ConditionRow], list[TaskRow]]:
    """Compares the learned optimizer with its fallback.

    Args:
        outcomes: outcomes of all contenders on all tasks under all conditions.

    Returns:
        A row for each condition, and one for each condition and task.
    """
    found = {(e.task, e.condition, e.contender): e for e in outcomes}
    tasks = list(dict.fromkeys(e.task for e in outcomes))
    conditions = list(dict.fromkeys(e.condition for e in outcomes))

    def ratio(task: str, condition: str) -> float:
        ours = found[task, condition, GUARDED].mean_loss
        theirs = found[task, condition, FALLBACK].mean_loss
        return 1.0 if ours == theirs else ours / theirs

    rows, by_task = [], []
    for condition in conditions:
        of_condition = [
            TaskRow(
                task=task,
                condition=condition,
                ratio=(r := ratio(task, condition)),
                over_ordinary=r / ratio(task, ORDINARY),
                worse=not r <= 1 + TOLERANCE,
            )
            for task in tasks
        ]
        worst = max(of_condition, key=lambda row: row.ratio)
        failures = {
            contender: sum(found[task, condition, contender].failures for task in tasks)
            for contender in CONTENDERS
        }
        runs = sum(len(found[task, condition, GUARDED].loss) for task in tasks)
        rows.append(
            ConditionRow(
                condition=condition,
                runs=runs,
                failures=failures,
                ratio=geometric_mean([row.ratio for row in of_condition]),
                worst_ratio=worst.ratio,
                worst_task=worst.task,
                over_ordinary=geometric_mean(
                    [row.over_ordinary for row in of_condition]
                ),
                worse=sum(row.worse for row in of_condition),
            )
        )
        by_task += of_condition
    return rows, by_task
