"""Summarises the comparison of optimizers on the suite from the cells' records.

There are two measures of convergence: the epoch from which a run's validation loss
stays near its own best, which a bad run reaches early; and the number of epochs to the
final validation loss of tuned AdamW.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from meta_opt.metrics.convergence import convergence_epoch, steps_to_target
from meta_opt.metrics.geometric_mean import geometric_mean
from meta_opt.metrics.intervals import Interval, interval
from meta_opt.optimizers.baselines import CORE_BASELINES
from meta_opt.studies.meta_test.comparison import MISS

Record = Mapping[str, Any]
"""Record of a cell, as `experiments.table_cells` writes it."""

_REFERENCE = "adamw"


def full_runs(record: Record) -> list[dict[str, Any]]:
    """Returns a cell's runs at the full length."""
    return [run for run in record["runs"] if run["budget"] == 1.0]


@dataclasses.dataclass(frozen=True)
class CellRow:
    """One optimizer on one task, means over seeds.

    Attributes:
        task: name of the task.
        trainable: ``all`` or ``lora``.
        optimizer: name of the optimizer.
        accuracy: test accuracy in percent, with its interval.
        macro_f1: test macro F1 in [0, 1], with its interval; None for a task without
            classes.
        validation_loss: final validation loss.
        epochs: number of epochs of a run.
        convergence: convergence epoch, see `convergence_epoch`.
        epochs_to_adamw: number of epochs until the mean validation loss over seeds is
            at or below tuned AdamW's final one; `MISS` times the epochs of a run if it
            never is.
        missed: whether AdamW's final loss is never reached.
        budget_to_adamw: smallest fraction of the full length at whose end the mean loss
            is at or below AdamW's; `MISS` if there is none.
        milliseconds: measured time of a step; None if not measured.
        seconds: number of steps times ``milliseconds``; None if not measured. The wall
            time of runs is not used, because other work may have slowed them.
        seconds_to_adamw: time to AdamW's final loss by ``epochs_to_adamw``; None if
            not measured.
        peak_bytes: peak memory of the compiled step.
        optimizer_bytes: size of the optimizer's state.
        trainable_parameters: number of trainable parameters.
    """

    task: str
    trainable: str
    optimizer: str
    accuracy: Interval
    macro_f1: Interval | None
    validation_loss: float
    epochs: float
    convergence: float
    epochs_to_adamw: float
    missed: bool
    budget_to_adamw: float
    milliseconds: float | None
    seconds: float | None
    seconds_to_adamw: float | None
    peak_bytes: int
    optimizer_bytes: int
    trainable_parameters: int


def cell_row(
    record: Record, adamw: Record, milliseconds: Mapping[str, float] | None = None
) -> CellRow:
    """Summarises a cell.

    Args:
        record: record of the cell.
        adamw: record of tuned AdamW on the same task.
        milliseconds: time of a step by optimizer, measured in turns; None if not
            measured.
    """
    full = full_runs(record)
    target = float(np.mean([_losses(run)[-1] for run in adamw["runs"]]))
    epochs = full[0]["epochs"][-1]["epoch"]
    mean = np.mean([_losses(run) for run in full], axis=0).tolist()
    found = steps_to_target(range(1, len(mean) + 1), mean, target)
    reached = MISS * epochs if found is None else float(found)
    budgets: dict[float, list[float]] = {}
    for run in record["runs"]:
        budgets.setdefault(run["budget"], []).append(_losses(run)[-1])
    enough = [b for b, losses in budgets.items() if np.mean(losses) <= target]
    step = None if milliseconds is None else milliseconds[record["optimizer"]]
    seconds = None if step is None else full[0]["num_steps"] * step / 1000
    has_f1 = "macro_f1" in full[0]["test"]
    return CellRow(
        task=record["task"],
        trainable=record["variant"],
        optimizer=record["optimizer"],
        accuracy=interval(100 * run["test"]["accuracy"] for run in full),
        macro_f1=interval(run["test"]["macro_f1"] for run in full) if has_f1 else None,
        validation_loss=float(np.mean([_losses(run)[-1] for run in full])),
        epochs=epochs,
        convergence=float(np.mean([convergence_epoch(_losses(run)) for run in full])),
        epochs_to_adamw=reached,
        missed=found is None,
        budget_to_adamw=min(enough, default=MISS),
        milliseconds=step,
        seconds=seconds,
        seconds_to_adamw=None if seconds is None else seconds * reached / epochs,
        peak_bytes=max(run["peak_bytes"] for run in full),
        optimizer_bytes=full[0]["optimizer_bytes"],
        trainable_parameters=full[0]["trainable"],
    )


@dataclasses.dataclass(frozen=True)
class OptimizerRow:
    """One optimizer over all tasks: a line of the table.

    Attributes:
        trainable: ``all`` or ``lora``.
        optimizer: name of the optimizer.
        tasks: number of tasks.
        accuracy: test accuracy in percent, mean over tasks; the interval is over seeds.
        macro_f1: macro F1 in [0, 1], mean over the tasks that have classes; the
            interval is over seeds.
        convergence: convergence epoch, mean over tasks.
        epochs_to_adamw: epochs to AdamW's final loss, mean over tasks.
        missed: number of tasks on which AdamW's final loss is never reached.
        seconds: time of a run, mean over tasks; None if a task has no timed step.
        seconds_to_adamw: time to AdamW's final loss, mean over tasks; None if a task
            has no timed step.
        peak_bytes: peak memory of the training step, mean over tasks.
        optimizer_bytes: size of the optimizer's state, mean over tasks.
    """

    trainable: str
    optimizer: str
    tasks: int
    accuracy: Interval
    macro_f1: Interval
    convergence: float
    epochs_to_adamw: float
    missed: int
    seconds: float | None
    seconds_to_adamw: float | None
    peak_bytes: float
    optimizer_bytes: float


@dataclasses.dataclass(frozen=True)
class Claims:
    """The paper's claims, measured for the learned optimizer and tuned core baselines.

    Ratios are geometric means over tasks; a task on which AdamW's loss is never reached
    counts as `MISS`.

    Attributes:
        trainable: ``all`` or ``lora``.
        tasks: number of tasks.
        unseen: whether the tasks are only those whose data were not used to train or
            select weights.
        best: the most accurate core baseline over the tasks.
        accuracy_over_best: gain in percentage points.
        accuracy_over_adamw: gain in percentage points.
        f1_over_best: gain in F1 over the baseline that is best in F1.
        f1_over_adamw: gain in F1 over AdamW.
        budget_to_adamw: fraction of the full length at whose end AdamW's final loss is
            reached.
        epochs_over_adamw: ratio of epochs to AdamW's final loss, to AdamW's own.
        epochs_over_best: ratio of epochs to AdamW's final loss, to those of the fastest
            core baseline on each task.
        time_over_adamw: ratio of time to AdamW's final loss, to AdamW's own; None if a
            task has no timed step.
        memory_over_adamw: ratio of the step's peak memory to AdamW's.
    """

    trainable: str
    tasks: int
    unseen: bool
    best: str
    accuracy_over_best: float
    accuracy_over_adamw: float
    f1_over_best: float
    f1_over_adamw: float
    budget_to_adamw: float
    epochs_over_adamw: float
    epochs_over_best: float
    time_over_adamw: float | None
    memory_over_adamw: float


def optimizer_row(records: Sequence[Record], rows: Sequence[CellRow]) -> OptimizerRow:
    """Summarises one optimizer's cells with the same ``trainable``.

    Args:
        records: records of all tasks.
        rows: rows of the same cells, in the same order.
    """
    accuracy, macro_f1 = [], []
    for record in records:
        tests = [run["test"] for run in full_runs(record)]
        accuracy.append([100 * test["accuracy"] for test in tests])
        if "macro_f1" in tests[0]:
            macro_f1.append([test["macro_f1"] for test in tests])

    def mean(name: str) -> float:
        return float(np.mean([getattr(row, name) for row in rows]))

    def timed(name: str) -> float | None:
        values = [getattr(row, name) for row in rows]
        return None if None in values else float(np.mean(values))

    return OptimizerRow(
        trainable=rows[0].trainable,
        optimizer=rows[0].optimizer,
        tasks=len(rows),
        accuracy=interval(np.mean(accuracy, axis=0)),
        macro_f1=interval(np.mean(macro_f1, axis=0)) if macro_f1 else interval([0.0]),
        convergence=mean("convergence"),
        epochs_to_adamw=mean("epochs_to_adamw"),
        missed=sum(row.missed for row in rows),
        seconds=timed("seconds"),
        seconds_to_adamw=timed("seconds_to_adamw"),
        peak_bytes=mean("peak_bytes"),
        optimizer_bytes=mean("optimizer_bytes"),
    )


def claims(
    rows: Mapping[str, OptimizerRow],
    cells: Mapping[str, Sequence[CellRow]],
    unseen: bool = False,
) -> Claims:
    """Compares the learned optimizer with the core baselines.

    Args:
        rows: rows with the same ``trainable``, by optimizer.
        cells: cells with the same ``trainable``, by optimizer, with the same tasks in
            the same order.
        unseen: value of `Claims.unseen`.

    Raises:
        KeyError: the learned optimizer or AdamW is missing.
    """
    ours, adamw = rows["learned"], rows[_REFERENCE]
    core = {name: rows[name] for name in CORE_BASELINES if name in rows}
    best = max(core, key=lambda name: core[name].accuracy.mean)
    best_f1 = max(row.macro_f1.mean for row in core.values())
    pairs = list(zip(cells["learned"], cells[_REFERENCE], strict=True))
    quickest = [
        min(row.epochs_to_adamw for row in of_task)
        for of_task in zip(*(cells[name] for name in core), strict=True)
    ]
    return Claims(
        trainable=ours.trainable,
        tasks=ours.tasks,
        unseen=unseen,
        best=best,
        accuracy_over_best=ours.accuracy.mean - core[best].accuracy.mean,
        accuracy_over_adamw=ours.accuracy.mean - adamw.accuracy.mean,
        f1_over_best=ours.macro_f1.mean - best_f1,
        f1_over_adamw=ours.macro_f1.mean - adamw.macro_f1.mean,
        budget_to_adamw=geometric_mean(row.budget_to_adamw for row, _ in pairs),
        epochs_over_adamw=geometric_mean(
            a.epochs_to_adamw / b.epochs_to_adamw for a, b in pairs
        ),
        epochs_over_best=geometric_mean(
            a.epochs_to_adamw / b for (a, _), b in zip(pairs, quickest, strict=True)
        ),
        time_over_adamw=_time_ratio(pairs),
        memory_over_adamw=geometric_mean(a.peak_bytes / b.peak_bytes for a, b in pairs),
    )


def _time_ratio(pairs: Sequence[tuple[CellRow, CellRow]]) -> float | None:
    """Returns the ratio of times to AdamW's loss; None if a step was not timed."""
    ratios = []
    for ours, adamw in pairs:
        if ours.seconds_to_adamw is None or adamw.seconds_to_adamw is None:
            return None
        ratios.append(ours.seconds_to_adamw / adamw.seconds_to_adamw)
    return geometric_mean(ratios)


def summarise_table(
    records: Iterable[Record],
    milliseconds: Mapping[tuple[str, str], Mapping[str, float]] | None = None,
    unseen: Sequence[str] = (),
) -> tuple[list[CellRow], list[OptimizerRow], list[Claims]]:
    """Summarises all records as cells, rows of the table, and claims.

    Rows are over the tasks that were measured with all optimizers; other tasks only
    have cells. Claims are over the same tasks, and separately over the unseen ones
    among them.

    Args:
        records: records of the measured cells.
        milliseconds: time of a step by (task, trainable) and optimizer.
        unseen: tasks whose data were not used to train or select weights.
    """
    by_kind: dict[str, dict[str, dict[str, Record]]] = {}
    for record in records:
        tasks = by_kind.setdefault(record["variant"], {})
        tasks.setdefault(record["task"], {})[record["optimizer"]] = record
    cells: list[CellRow] = []
    lines: list[OptimizerRow] = []
    found: list[Claims] = []
    for trainable, tasks in by_kind.items():
        names = list(dict.fromkeys(n for records in tasks.values() for n in records))
        rows: dict[str, list[CellRow]] = {name: [] for name in names}
        kept: dict[str, list[Record]] = {name: [] for name in names}
        for task, of_task in tasks.items():
            if _REFERENCE not in of_task:
                continue
            steps = (milliseconds or {}).get((task, trainable))
            for name, record in of_task.items():
                row = cell_row(record, of_task[_REFERENCE], steps)
                cells.append(row)
                if len(of_task) == len(names):
                    rows[name].append(row)
                    kept[name].append(record)
        measured = [row.task for row in next(iter(rows.values()))]
        for only_unseen in (False, True):
            picks = [
                i for i, t in enumerate(measured) if not only_unseen or t in unseen
            ]
            if not picks:
                continue
            of_tasks = {name: [rows[name][i] for i in picks] for name in names}
            of_kind = {
                name: optimizer_row([kept[name][i] for i in picks], of_tasks[name])
                for name in names
            }
            if not only_unseen:
                lines += of_kind.values()
            if "learned" in of_kind and _REFERENCE in of_kind:
                found.append(claims(of_kind, of_tasks, only_unseen))
    return cells, lines, found


def _losses(run: Mapping[str, Any]) -> list[float]:
    found = [record["validation"]["loss"] for record in run["epochs"]]
    return [x if math.isfinite(x) else math.inf for x in found]
