"""Finds the hyperparameters with the lowest mean meta-objective over many tasks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from meta_opt.meta_training.scoring import meta_objective
from meta_opt.optimizers.untuned import CALIBRATED, Setting, calibrated
from meta_opt.tasks.inner_run import InnerRun
from meta_opt.tasks.task import Task

_REFERENCE = ("adamw", Setting(1e-3, 0.01))
"""Optimizer and setting that all others are compared with."""


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """Grid of hyperparameters, and the runs that each point is evaluated on.

    Attributes:
        families: names of task families; use those of meta-training only.
        rivals: baseline optimizers, names in `meta_opt.optimizers.untuned.CALIBRATED`.
        learning_rates: peak learning rates to try, by rival.
        weight_decays: weight decays to try with each learning rate, by rival.
        horizon_shares: run lengths, as fractions of a task's largest horizon.
        seeds: random seeds; every setting runs once with each.
        error_weight: weight of the error rate relative to the log loss.
    """

    families: tuple[str, ...]
    rivals: tuple[str, ...]
    learning_rates: Mapping[str, tuple[float, ...]]
    weight_decays: Mapping[str, tuple[float, ...]]
    horizon_shares: tuple[float, ...] = (1.0, 0.4)
    seeds: tuple[int, ...] = (0,)
    error_weight: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError for unknown names and empty lists."""
        for field in ("families", "rivals", "horizon_shares", "seeds"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty")
        for name in self.rivals:
            if name not in CALIBRATED:
                raise ValueError(
                    f"unknown rival {name!r}; available: {', '.join(CALIBRATED)}"
                )
            if not self.learning_rates.get(name) or not self.weight_decays.get(name):
                raise ValueError(
                    f"{name} needs learning_rates and weight_decays to try"
                )

    def settings(self, rival: str) -> list[Setting]:
        """Returns the grid of settings of a rival."""
        return [
            Setting(rate, decay)
            for rate in self.learning_rates[rival]
            for decay in self.weight_decays[rival]
        ]


def task_objectives(
    task: Task, config: CalibrationConfig
) -> dict[str, list[dict[str, float]]]:
    """Evaluates every setting on a task, relative to AdamW with learning rate 1e-3.

    Args:
        task: task of one of the families in ``config``.
        config: the grid of settings and the runs to evaluate them on.

    Returns:
        By rival, a row for each setting: ``learning_rate``, ``weight_decay`` and
        ``objective``, the mean of `meta_opt.meta_training.scoring.meta_objective` over
        lengths and seeds; 0 means as good as the reference, lower is better.
    """
    lengths = [
        max(1, round(share * task.horizons[1])) for share in config.horizon_shares
    ]
    runs: dict[str, InnerRun] = {}

    def held_out(rival: str, setting: Setting, steps: int) -> tuple:
        if rival not in runs:
            runs[rival] = InnerRun(task, lambda n, s: calibrated(rival, n, **s))
        outcome, _ = runs[rival](config.seeds, steps, dataclasses.asdict(setting))
        return outcome.held_out(task.splits)

    references = [held_out(*_REFERENCE, steps) for steps in lengths]

    def objective(rival: str, setting: Setting) -> float:
        objectives = [
            meta_objective(
                jnp.asarray(loss),
                jnp.asarray(error),
                jnp.asarray(reference[0]),
                jnp.asarray(reference[1]),
                config.error_weight,
            )
            for steps, reference in zip(lengths, references, strict=True)
            for loss, error in [held_out(rival, setting, steps)]
        ]
        return float(np.mean(objectives))

    return {
        rival: [
            {**dataclasses.asdict(setting), "objective": objective(rival, setting)}
            for setting in config.settings(rival)
        ]
        for rival in config.rivals
    }


def best_settings(
    objectives: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
) -> dict[str, dict[str, float]]:
    """Returns the setting of each rival with the lowest mean objective over tasks.

    Args:
        objectives: results of `task_objectives`, by task.

    Returns:
        By rival: ``learning_rate``, ``weight_decay`` and the mean ``objective``.

    >>> row = lambda rate, objective: dict(
    ...     learning_rate=rate, weight_decay=0.0, objective=objective)
    >>> found = best_settings({
    ...     "a": {"lion": [row(0.1, 2.0), row(0.01, 0.5)]},
    ...     "b": {"lion": [row(0.1, -1.0), row(0.01, 0.1)]}})
    >>> found["lion"]["learning_rate"], found["lion"]["objective"]
    (0.01, 0.3)
    """
    tasks = list(objectives.values())
    best = {}
    for rival, rows in tasks[0].items():
        means = [
            float(np.mean([task[rival][i]["objective"] for task in tasks]))
            for i in range(len(rows))
        ]
        i = int(np.argmin(means))
        best[rival] = {
            "learning_rate": rows[i]["learning_rate"],
            "weight_decay": rows[i]["weight_decay"],
            "objective": means[i],
        }
    return best
