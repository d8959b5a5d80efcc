"""The report on ablations: Markdown and JSON in one folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.reporting.tables import Cell, Row, Section, Table, write_table

Values = Mapping[str, Any]

_NOTES = """\
- A number is the log of the mean final loss, on validation and test examples, over \
that of the tuned baseline at its full length: below 0 is better.
- The parts named `without` and `only` were removed from the shipped weights, which \
were not trained again; rows below them are of other weights."""


def write_ablations(folder: str | Path, rows: Sequence[Values], facts: Values) -> str:
    """Writes ``ablations.md`` and ``ablations.json``.

    Args:
        folder: created if needed.
        rows: fields of `meta_opt.studies.ablations.AblationRow`.
        facts: how the rows were measured, name to value.

    Returns:
        The table, for a terminal.
    """
    title = "Ablations on meta-validation"
    return write_table(folder, "ablations", title, _table(rows), rows, facts, _NOTES)


def _table(rows: Sequence[Values]) -> Table:
    """Sections are budgets, rows are sets of weights, columns are tasks."""
    found = {(r["budget"], r["name"], r["task"]): r["log_ratio"] for r in rows}
    budgets, names, tasks = (
        list(dict.fromkeys(row[key] for row in rows))
        for key in ("budget", "name", "task")
    )

    def cells(budget: float, name: str) -> tuple[Cell, ...]:
        values = [found[budget, name, task] for task in tasks]
        return tuple(Cell(f"{x:+.3f}") for x in (*values, np.mean(values)))

    sections = tuple(
        Section(
            f"{100 * budget:.0f}% of the steps",
            tuple(Row(name, "", cells(budget, name)) for name in names),
        )
        for budget in budgets
    )
    return Table((*tasks, "mean"), sections)
