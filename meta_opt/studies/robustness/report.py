"""The report on adverse conditions: Markdown and JSON in one folder."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_opt.reporting.tables import (
    Cell,
    Row,
    Section,
    Table,
    fact_list,
    to_markdown,
    to_text,
    write_report,
)

Values = Mapping[str, Any]

_NOTES = (
    "Failed: the final validation loss is not finite, or more than 5% above that at "
    "initialisation.",
    "Loss over the fallback's: mean final validation loss of the guarded learned "
    "optimizer over that of the guarded hand-designed rule under the same condition, "
    "geometric mean and largest over tasks; 1.05 is the bar.",
    "Over an ordinary run: that ratio over the one of the ordinary run, geometric mean "
    "over tasks. What is above 1 was done by the condition.",
)


def write_robustness_report(
    folder: str | Path,
    *,
    rows: Sequence[Values],
    by_task: Sequence[Values],
    outcomes: Sequence[Values],
    facts: Values,
) -> str:
    """Writes ``safeguard.md`` and ``safeguard.json``.

    Args:
        folder: created if needed.
        rows: fields of `meta_opt.studies.robustness.measure.ConditionRow` for each
            condition.
        by_task: fields of `TaskRow` of the same module for each condition and task.
        outcomes: fields of `RunOutcome` of the same module for each measurement.
        facts: how it was measured, name to value.

    Returns:
        The table of conditions, for a terminal.
    """
    summary = _summary(rows)
    parts = [
        "# Safeguard under adverse conditions",
        to_markdown(summary),
        "## Loss over the fallback's by task",
        to_markdown(_grid(by_task)),
        "## How to read this",
        "\n".join(f"- {note}" for note in _NOTES),
        fact_list(facts),
    ]
    everything = {
        "facts": dict(facts),
        "conditions": list(rows),
        "tasks": list(by_task),
        "outcomes": list(outcomes),
    }
    write_report(folder, "safeguard", parts, everything)
    return to_text(summary)


def _summary(rows: Sequence[Values]) -> Table:
    contenders = tuple(rows[0]["failures"])

    def cells(row: Values) -> tuple[Cell, ...]:
        return (
            *(Cell(str(row["failures"][contender])) for contender in contenders),
            Cell(_ratio(row["ratio"])),
            Cell(f"{_ratio(row['worst_ratio'])} ({row['worst_task']})"),
            Cell(str(row["worse"])),
            Cell(_ratio(row["over_ordinary"])),
        )

    runs = ", ".join(sorted({str(row["runs"]) for row in rows}))
    columns = (
        *(f"failed: {contender}" for contender in contenders),
        "loss over fallback's",
        "worst",
        "tasks above 1.05",
        "over ordinary run",
    )
    table = tuple(Row(row["condition"], "", cells(row)) for row in rows)
    return Table(columns, (Section(f"of {runs} runs each", table),))


def _grid(by_task: Sequence[Values]) -> Table:
    tasks = list(dict.fromkeys(row["task"] for row in by_task))
    found = {(row["condition"], row["task"]): row["ratio"] for row in by_task}
    rows = tuple(
        Row(condition, "", tuple(Cell(_ratio(found[condition, t])) for t in tasks))
        for condition in dict.fromkeys(row["condition"] for row in by_task)
    )
    return Table(tuple(tasks), (Section("", rows),))


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "failed"
