"""Means of each stage over tasks and seeds, and its gain over the first one."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from meta_opt.metrics.intervals import Interval, interval

Results = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Runs by stage and task; each has ``test`` metrics and ``seconds`` of one seed."""


@dataclasses.dataclass(frozen=True)
class StageRow:
    """One stage over all tasks.

    Attributes:
        stage: name of the stage.
        tasks: number of tasks.
        accuracy: test accuracy in percent, mean over tasks; the interval is over seeds.
        gain: difference in accuracy to the first stage in percentage points; the
            interval is over tasks. None for the first stage.
        macro_f1: macro F1 in [0, 1], mean over the tasks that have classes.
        seconds: training time, mean over tasks.
        by_task: accuracy on each task in percent, mean over seeds.
    """

    stage: str
    tasks: int
    accuracy: Interval
    gain: Interval | None
    macro_f1: float
    seconds: float
    by_task: dict[str, float]


def summarise_stages(results: Results) -> list[StageRow]:
    """Summarises each stage over the tasks that are measured for all stages.

    Args:
        results: results of at least one stage. Stages without any task are left out.

    Returns:
        Rows in the order of the stages; empty if no task is measured for all stages.
    """
    measured = {stage: tasks for stage, tasks in results.items() if tasks}
    if not measured:
        return []
    common = set.intersection(*(set(tasks) for tasks in measured.values()))
    names = [task for task in next(iter(measured.values())) if task in common]
    if not names:
        return []
    first = next(iter(measured))
    rows = []
    for stage, tasks in measured.items():
        runs = [tasks[name] for name in names]
        accuracy = [[100 * run["test"]["accuracy"] for run in of] for of in runs]
        f1 = [
            [run["test"]["macro_f1"] for run in of]
            for of in runs
            if "macro_f1" in of[0]["test"]
        ]
        base = [
            np.mean([100 * run["test"]["accuracy"] for run in measured[first][name]])
            for name in names
        ]
        means = [float(np.mean(x)) for x in accuracy]
        # Tasks may have different numbers of seeds; the smallest is used for all.
        seeds = min(map(len, accuracy))
        rows.append(
            StageRow(
                stage=stage,
                tasks=len(names),
                accuracy=interval(np.mean([x[:seeds] for x in accuracy], axis=0)),
                gain=None if stage == first else interval(np.subtract(means, base)),
                macro_f1=float(np.mean([np.mean(x) for x in f1])) if f1 else np.nan,
                seconds=float(np.mean([run["seconds"] for of in runs for run in of])),
                by_task=dict(zip(names, means, strict=True)),
            )
        )
    return rows
