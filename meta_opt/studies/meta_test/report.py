"""The report of a meta-test: Markdown, JSON and CSV in one folder."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_opt.metrics.intervals import Interval
from meta_opt.reporting.tables import (
    Cell,
    Row,
    Section,
    Table,
    fact_list,
    numbers_row,
    signed,
    to_markdown,
    to_text,
    write_report,
)
from meta_opt.text_files import read_json
from meta_opt.types import write_atomic

Values = Mapping[str, Any]
NAME = "meta_test"
"""Name of the report's files, without suffix."""

_NOTES = (
    "Budget to X: the least share of the steps, among those that were run, at which "
    "the validation loss (mean over seeds) is at or below that of tuned X after all "
    "steps; a miss counts as 4. Over several tasks: the geometric mean.",
    "Accuracies are on test data after all steps, in percentage points, paired by "
    "seed. The best of five or of all is the one most accurate *on the test data*, so "
    "that the comparison favours the baselines. Intervals are 95%, Student's t: over "
    "seeds for a task, over tasks in the summary.",
    "A failed run (a loss that is not finite) counts as infinite loss and accuracy 0. "
    "A poor run, of those at the full budget, failed or is less accurate on test data "
    "than 0.9 of tuned AdamW's mean.",
    "Untuned rivals are named `_calibrated`, at one setting for all tasks, or "
    "`_default`, at optax's defaults.",
    "Time is that of one run without compilation, over one run of AdamW, without and "
    "with its search.",
)
_SUMMARY: tuple[tuple[str, str, str], ...] = (
    ("budget_to_adamw", "budget to tuned AdamW", "lower"),
    ("budget_to_best_of_five", "budget to the best of five", "lower"),
    ("accuracy_over_adamw", "accuracy over AdamW (points)", "higher"),
    ("accuracy_over_best_of_five", "accuracy over the best of five (points)", "higher"),
    ("accuracy_over_best_of_all", "accuracy over the best of all (points)", "higher"),
    (
        "share_as_accurate_as_best_of_five",
        "share of tasks at least as accurate as the best of five",
        "higher",
    ),
    (
        "share_close_to_best_of_all",
        "share of tasks with loss within 5% of the best of all",
        "higher",
    ),
    ("misses", "tasks that miss AdamW's loss", "lower"),
    ("failures", "failed runs", "lower"),
    (
        "worst_over_hand_designed",
        "worst task's loss over the hand-designed rule's",
        "lower",
    ),
    ("poor_runs", "runs not finite or under 0.9 of AdamW's accuracy", "lower"),
    ("time_ratio", "time over AdamW's", "lower"),
    ("time_ratio_with_tuning", "time over AdamW's with its search", "lower"),
)
_TASK: tuple[tuple[str, str], ...] = (
    ("budget_to_adamw", "budget to AdamW"),
    ("budget_to_best_of_five", "to best of five"),
    ("validation_loss", "loss"),
    ("adamw_validation_loss", "AdamW's"),
    ("best_of_all_validation_loss", "best of all"),
    ("test_accuracy", "accuracy (%)"),
    ("accuracy_over_adamw", "over AdamW"),
    ("accuracy_over_best_of_five", "over best of five"),
    ("accuracy_over_best_of_all", "over best of all"),
    ("loss_over_hand_designed", "loss over hand-designed"),
    ("failures", "failed"),
    ("poor_runs", "poor"),
    ("seconds", "seconds"),
    ("time_ratio", "time ratio"),
)


def write_meta_test(
    folder: str | Path,
    *,
    summaries: Sequence[Values],
    rows: Mapping[str, Sequence[Values]],
    finals: Sequence[Values],
    facts: Values | None = None,
) -> str:
    """Writes ``meta_test.md``, ``meta_test.json`` and ``meta_test.csv``.

    Args:
        folder: created if needed.
        summaries: fields of `meta_opt.studies.meta_test.comparison.Summary` for each
            subject; empty if only baselines were measured.
        rows: fields of `TaskRow` of the same module for each task, by subject.
        finals: fields of `FinalRow` of the same module for each optimizer and task.
        facts: how it was measured, name to value.

    Returns:
        The summary, for a terminal; without subjects, the results of the baselines.
    """
    folder, facts = Path(folder), dict(facts or {})
    summary = _summary(summaries) if summaries else _finals(finals)
    parts = ["# Meta-test", to_markdown(summary)]
    for subject, found in rows.items():
        parts += [f"## {subject}", _by_task(found)]
    if summaries:
        parts += ["## All optimizers at the full budget", to_markdown(_finals(finals))]
    parts += ["## How to read this", "\n".join(f"- {note}" for note in _NOTES)]
    parts += [fact_list(facts)]
    everything = {
        "facts": facts,
        "summaries": summaries,
        "rows": {subject: list(found) for subject, found in rows.items()},
        "finals": finals,
    }
    write_report(folder, NAME, parts, everything)
    flat = [
        {"subject": subject, **_flat(row)}
        for subject, found in rows.items()
        for row in found
    ]
    with (
        write_atomic(folder / f"{NAME}.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(flat[0]) if flat else [])
        writer.writeheader()
        writer.writerows(flat)
    return to_text(summary)


def reported_tasks(folder: str | Path) -> set[str]:
    """Returns the names of the tasks in a folder's report; empty without a report.

    Raises:
        ValueError: a damaged report.
    """
    path = Path(folder) / f"{NAME}.json"
    if not path.is_file():
        return set()
    finals = read_json(path).get("finals")
    if not isinstance(finals, list) or not all(
        isinstance(row, dict) and "task" in row for row in finals
    ):
        raise ValueError(
            f"{path} is not a report of a meta-test; move it to another folder"
        )
    return {row["task"] for row in finals}


def _summary(summaries: Sequence[Values]) -> Table:
    rows = []
    for key, label, better in _SUMMARY:
        values = [summary[key] for summary in summaries]
        means = [v["mean"] if isinstance(v, Mapping) else v for v in values]
        digits = 0 if all(isinstance(v, int) for v in values) else 2
        marked = numbers_row(label, better, means, digits)
        cells = tuple(
            Cell(_show(v), cell.best) if isinstance(v, Mapping) else cell
            for v, cell in zip(values, marked.cells, strict=True)
        )
        rows.append(Row(label, better, cells))
    tasks = sorted({summary["tasks"] for summary in summaries})
    title = f"tasks: {', '.join(map(str, tasks))}"
    columns = tuple(summary["subject"] for summary in summaries)
    return Table(columns, (Section(title, tuple(rows)),))


def _by_task(rows: Sequence[Values]) -> str:
    table = Table(
        tuple(label for _, label in _TASK),
        (
            Section(
                "",
                tuple(
                    Row(row["task"], "", tuple(Cell(_show(row[k])) for k, _ in _TASK))
                    for row in rows
                ),
            ),
        ),
    )
    return to_markdown(table)


def _finals(finals: Sequence[Values]) -> Table:
    """Returns a table of loss and accuracy: optimizers by tasks."""
    tasks = list(dict.fromkeys(f["task"] for f in finals))
    optimizers = list(dict.fromkeys(f["optimizer"] for f in finals))
    found = {(f["task"], f["optimizer"]): f for f in finals}

    def section(title: str, key: str, better: str, digits: int) -> Section:
        values = {
            task: [found.get((task, name), {}).get(key) for name in optimizers]
            for task in tasks
        }
        rows = [
            numbers_row(task, better, values[task], digits, infinite="failed")
            for task in tasks
        ]
        return Section(title, tuple(rows))

    return Table(
        tuple(optimizers),
        (
            section("validation loss", "validation_loss", "lower", 3),
            section("test accuracy (%)", "test_accuracy", "higher", 1),
            section("seconds of a run", "seconds", "", 2),
            section("seconds of the search", "tuning_seconds", "", 0),
        ),
    )


def _show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return signed(Interval(**value))
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else "failed"
    return str(value)


def _flat(row: Values) -> dict[str, Any]:
    """Flattens intervals: ``accuracy_over_adamw`` and its ``_low`` and ``_high``."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {key: value["mean"]}
            flat |= {f"{key}_{end}": value[end] for end in ("low", "high")}
        else:
            flat[key] = value
    return flat
