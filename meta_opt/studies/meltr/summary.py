"""Summarises the comparison of loss combiners from the cells of a table.

A variant of a task is a combiner (`meta_opt.meta_loss.settings.COMBINATIONS`). The
inner optimizers are tuned AdamW and the learned optimizer, which is not tuned.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from meta_opt.metrics.intervals import Interval, interval
from meta_opt.studies.optimizer_table.summary import full_runs

Record = Mapping[str, Any]
"""Record of a cell, as `experiments.table_cells` writes it."""

COMBINERS = (
    *("primary", "equal", "uncertainty", "gradnorm", "pcgrad", "meltr"),
    "meltr_residual",
)
"""Combiners in the order of the table; the last adds MELTR to the sum of losses."""
METRICS: Mapping[str, tuple[tuple[str, str, str, float, int], ...]] = {
    "retrieval": (
        ("t2v_r1", "R@1 (%)", "higher", 100, 1),
        ("t2v_r5", "R@5 (%)", "higher", 100, 1),
        ("t2v_r10", "R@10 (%)", "higher", 100, 1),
        ("t2v_medr", "median rank", "lower", 1, 1),
    ),
    "captioning": (
        ("bleu3", "BLEU-3", "higher", 1, 1),
        ("bleu4", "BLEU-4", "higher", 1, 1),
        ("meteor", "METEOR, without synonyms", "higher", 1, 1),
        ("rouge_l", "ROUGE-L", "higher", 1, 1),
        ("cider", "CIDEr", "higher", 1, 1),
    ),
    "question_answering": (
        ("accuracy", "accuracy (%)", "higher", 100, 1),
        ("choice_accuracy", "one of four names (%)", "higher", 100, 1),
        ("accuracy_category", "category (%)", "higher", 100, 1),
        ("accuracy_direction", "forwards or backwards (%)", "higher", 100, 1),
        ("count_mse", "squared error of counted changes", "lower", 1, 2),
    ),
    "sentiment": (
        ("mae", "mean absolute error", "lower", 1, 3),
        ("correlation", "correlation", "higher", 1, 3),
        ("acc2_non_negative", "Acc-2 (%)", "higher", 100, 1),
        ("f1_non_negative", "F1 (%)", "higher", 100, 1),
    ),
}
"""Test metrics by kind of task: key, label, ``higher`` or ``lower`` (which is better),
factor and number of digits."""


@dataclasses.dataclass(frozen=True)
class CombinerRow:
    """One combiner with one optimizer on one task, over seeds.

    Attributes:
        task: name of the task.
        kind: kind of the task, a key of `METRICS`.
        optimizer: optimizer of the model's parameters.
        combiner: name of the combiner.
        metrics: test metrics by key.
        over_equal: improvement of the main metric (`MAIN`) over equal weights, paired
            by seed; for an error, its decrease. None for equal weights.
        validation_loss: final primary loss on validation data.
        peak_bytes: peak memory of the compiled step.
    """

    task: str
    kind: str
    optimizer: str
    combiner: str
    metrics: dict[str, Interval]
    over_equal: Interval | None
    validation_loss: Interval
    peak_bytes: int


MAIN = {
    "retrieval": ("t2v_r10", 100.0),
    "captioning": ("cider", 1.0),
    "question_answering": ("accuracy", 100.0),
    "sentiment": ("mae", -1.0),
}
"""Metric that combiners are compared by, and the factor of its gain, by kind of task;
the factor is negative for errors."""


def summarise(records: Sequence[Record], kinds: Mapping[str, str]) -> list[CombinerRow]:
    """Returns a row for each cell, in the order of the table.

    Args:
        records: records of the cells.
        kinds: kind of each task, a key of `METRICS`.
    """
    found = {(r["task"], r["optimizer"], r["variant"]): r for r in records}
    rows = []
    for task in dict.fromkeys(task for task, _, _ in found):
        for optimizer in dict.fromkeys(o for t, o, _ in found if t == task):
            equal = found.get((task, optimizer, "equal"))
            for combiner in COMBINERS:
                record = found.get((task, optimizer, combiner))
                if record is not None:
                    rows.append(_row(record, kinds[task], equal))
    return rows


def _row(record: Record, kind: str, equal: Record | None) -> CombinerRow:
    runs = full_runs(record)
    keys = [key for key, *_ in METRICS[kind] if key in runs[0]["test"]]
    losses = [run["epochs"][-1]["validation"]["loss"] for run in runs]
    over_equal = None
    if equal is not None and record["variant"] != "equal":
        key, factor = MAIN[kind]
        others = {run["seed"]: run["test"][key] for run in full_runs(equal)}
        over_equal = interval(
            factor * (run["test"][key] - others[run["seed"]])
            for run in runs
            if run["seed"] in others
        )
    return CombinerRow(
        task=record["task"],
        kind=kind,
        optimizer=record["optimizer"],
        combiner=record["variant"],
        metrics={k: interval(run["test"][k] for run in runs) for k in keys},
        over_equal=over_equal,
        validation_loss=interval(losses),
        peak_bytes=max(run["peak_bytes"] for run in runs),
    )
