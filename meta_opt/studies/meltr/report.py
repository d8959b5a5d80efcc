"""Tables of MELTR's results next to published ones (Ko et al., arXiv:2303.13009)."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from meta_opt.metrics.intervals import Interval
from meta_opt.reporting.tables import (
    Row,
    Section,
    Table,
    numbers_row,
    to_markdown,
    write_report,
)
from meta_opt.studies.meltr.summary import COMBINERS, METRICS, CombinerRow

LABELS = {"adamw": "AdamW, tuned", "learned": "learned, not tuned"}
PUBLISHED = """\
| published: model, data | metric | without | with MELTR |
|---|---|---:|---:|
| UniVL, YouCook2 retrieval | R@1 / R@5 / R@10 / MedR | 28.9 / 57.6 / 70.0 / 4 | 33.7 / 63.1 / 74.8 / 3 |
| UniVL, MSR-VTT 9k retrieval | R@1 / R@5 / R@10 / MedR | 27.2 / 55.7 / 68.7 / 4 | 31.1 / 55.7 / 68.3 / 4 |
| VIOLET, TGIF-QA | action / transition / frame (%) | | 95.4 / 97.5 / 63.4 |
| UniVL, YouCook2 captions (video) | B-3 / B-4 / METEOR / ROUGE-L / CIDEr | | 17.35 / 11.98 / 18.19 / 41.28 / 138 |
| UniVL, CMU-MOSI sentiment | Acc-2 / F1 / MAE / Corr | | 85.3 / 85.4 / 0.759 / 0.789 |"""  # noqa: E501
NOTES = (
    "Means over seeds with 95% intervals, on test data. Gain over equal weights: of "
    "R@10, CIDEr, accuracy and the mean absolute error, seed by seed; a gain counts "
    "where the interval is above 0. Each combiner has AdamW tuned for itself by the "
    "same number of trials; the learned optimizer is not tuned. METEOR matches words "
    "and stems but no synonyms, and is lower than published figures. The clips are "
    "animated emoji, which the published figures do not know: what compares is the "
    "gain, not the level."
)


def write_meltr(
    folder: str | Path,
    rows: Sequence[CombinerRow],
    total: int,
    count: int,
    command: str,
) -> str:
    """Writes ``meltr.md`` and ``meltr.json``.

    Args:
        folder: folder of the results.
        rows: see `meta_opt.studies.meltr.summary.summarise`.
        total: number of cells of the whole table.
        count: number of measured cells.
        command: command line that makes the report.

    Returns:
        The Markdown.
    """
    parts = ["# Losses combined", f"`{command}`", NOTES]
    if count < total:
        parts.append(f"**{count} of {total} cells are measured.**")
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        parts += [f"## {task}", to_markdown(task_table(of_task))]
    parts += ["## Published", PUBLISHED]
    values = [dataclasses.asdict(row) for row in rows]
    write_report(folder, "meltr", parts, {"command": command, "rows": values})
    return "\n\n".join(parts)


def task_table(rows: Sequence[CombinerRow]) -> Table:
    """Returns the table of a task: columns are combiners, sections are optimizers.

    Args:
        rows: rows of one task.
    """
    columns = [c for c in COMBINERS if any(row.combiner == c for row in rows)]
    sections = []
    for optimizer in dict.fromkeys(row.optimizer for row in rows):
        found = {r.combiner: r for r in rows if r.optimizer == optimizer}
        there = [found.get(c) for c in columns]
        lines = []
        for key, label, better, factor, digits in METRICS[rows[0].kind]:
            values = [None if r is None else r.metrics.get(key) for r in there]
            if any(values):
                lines += _with_interval(label, better, values, factor, digits)
        gains = _each(there, lambda r: r.over_equal)
        lines += _with_interval("gain over equal weights", "higher", gains, 1, 2)
        losses = _each(there, lambda r: r.validation_loss.mean)
        lines.append(numbers_row("validation loss, primary", "lower", losses, 3))
        memory = _each(there, lambda r: r.peak_bytes / 2**20)
        lines.append(numbers_row("peak memory of a step (MiB)", "lower", memory, 0))
        sections.append(Section(LABELS.get(optimizer, optimizer), tuple(lines)))
    return Table(columns=tuple(columns), sections=tuple(sections))


def _each(
    rows: Sequence[CombinerRow | None], read: Callable[[CombinerRow], Any]
) -> list[Any]:
    return [None if row is None else read(row) for row in rows]


def _with_interval(
    label: str,
    better: str,
    values: Sequence[Interval | None],
    factor: float,
    digits: int,
) -> list[Row]:
    """Returns rows of means and of the intervals' half-widths, if there are any."""
    means = [None if v is None else v.mean for v in values]
    halves = [None if v is None or v.high is None else v.high - v.mean for v in values]
    rows = [numbers_row(label, better, means, digits, factor)]
    if any(half is not None for half in halves):
        rows.append(numbers_row("±", "", halves, digits, factor))
    return rows
