"""The report on balancing modalities: Markdown and JSON in one folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.reporting.tables import Cell, Row, Section, Table, write_table

_NOTE = (
    "Means over seeds on the test split, and the spread (largest minus smallest). Of a "
    "modality alone: the mean probability of the right class with all others masked."
)


def write_balancing(
    folder: str | Path, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> str:
    """Writes ``balancing.md`` and ``balancing.json``.

    Args:
        folder: created if needed.
        rows: results of `meta_opt.studies.balancing.measure.measure`.
        facts: how the rows were measured, name to value.

    Returns:
        The table, for a terminal.
    """
    table = balancing_table(rows)
    return write_table(
        folder, "balancing", "Balancing of modalities", table, rows, facts, _NOTE
    )


def balancing_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows are variants; columns are accuracy, loss, each modality alone, step time."""
    modalities = list(rows[0]["runs"][0]["alone"])

    def cells(row: Mapping[str, Any]) -> tuple[Cell, ...]:
        runs = row["runs"]
        columns = [[r["accuracy"] for r in runs], [r["loss"] for r in runs]]
        columns += [[r["alone"][m] for r in runs] for m in modalities]
        return (
            *(Cell(f"{np.mean(x):.3f} ({np.ptp(x):.3f})") for x in columns),
            Cell(f"{np.mean([r['step_ms'] for r in runs]):.0f}"),
        )

    lines = tuple(Row(row["name"], "", cells(row)) for row in rows)
    alone = [f"{m} alone" for m in modalities]
    columns = ("accuracy", "loss", *alone, "ms a step")
    return Table(columns, (Section("balancing", lines),))
