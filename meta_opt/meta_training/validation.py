"""Meta-validation: weights evaluated on held-out tasks against tuned baselines."""

import math
from collections.abc import Mapping

import numpy as np

from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.tasks.inner_run import InnerRun, learned_on, pooled
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree

_WORST = math.log(4.0)
"""Score of a diverged run, and the bound on the absolute value of all scores."""


class Validation:
    """Log ratio of final held-out loss to that of a tuned baseline, on held-out tasks.

    Losses are on validation and test examples together: neither trains or tunes the
    learned optimizer, and either alone would be noisier. The baseline was tuned on the
    validation examples.

    Args:
        tasks: held-out tasks by name.
        references: final validation and test loss of the tuned baseline, by task, at
            the task's largest horizon.
        config: architecture of the controller.
        seeds: random seeds of initialisation and batches.

    Raises:
        ValueError: a task without a reference.

    Example:
        >>> Validation({}, {}, ControllerConfig())(None)
        {}
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        references: Mapping[str, tuple[float, float]],
        config: ControllerConfig,
        seeds: tuple[int, ...] = (11, 12),
    ) -> None:
        missing = sorted(set(tasks) - set(references))
        if missing:
            raise ValueError(
                f"no tuned baseline for {', '.join(missing)}; run "
                "experiments/meta_evaluate.py --config "
                "configs/meta_evaluate.py:validation"
            )
        self._tasks = dict(tasks)
        self._references = {
            name: float(pooled(task.splits, *references[name]))
            for name, task in tasks.items()
        }
        self._seeds = seeds
        self._runs = {
            name: InnerRun(
                task,
                learned_on(task, config),
                seeds_at_once=len(seeds),
            )
            for name, task in tasks.items()
        }

    def __call__(self, theta: PyTree) -> dict[str, float]:
        """Returns the scores by task; below 0 is better than the baseline."""
        return {name: self._score(name, theta) for name in self._tasks}

    def _score(self, name: str, theta: PyTree) -> float:
        task = self._tasks[name]
        outcome, _ = self._runs[name](self._seeds, task.horizons[1], theta)
        loss = float(np.mean(outcome.held_out(task.splits)[0]))
        if not math.isfinite(loss):
            return _WORST
        score = math.log(loss / self._references[name])
        return max(-_WORST, min(score, _WORST))
