"""The report on token pruning: Markdown and JSON in one folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.reporting.tables import Cell, Row, Section, Table, write_table

_NOTE = "Means over seeds of the test split, and the spread (largest minus smallest)."


def write_token_pruning(
    folder: str | Path, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> str:
    """Writes ``token_pruning.md`` and ``token_pruning.json``.

    Args:
        folder: created if needed.
        rows: results of `meta_opt.studies.token_pruning.measure.measure`.
        facts: how the rows were measured, name to value.

    Returns:
        The table, for a terminal.
    """
    table = pruning_table(rows)
    return write_table(
        folder, "token_pruning", "Token pruning", table, rows, facts, _NOTE
    )


def pruning_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a row for each variant: tokens, operations, milliseconds, metrics."""
    metrics = list(rows[0]["test"][0]) if rows[0]["test"] else []

    def cells(row: Mapping[str, Any]) -> tuple[Cell, ...]:
        values = [[seed[m] for seed in row["test"]] for m in metrics]
        return (
            Cell(str(row["tokens"])),
            Cell(f"{row['flops'] / 1e9:.2f}"),
            Cell(f"{row['step_ms']:.0f}"),
            *(Cell(f"{np.mean(v):.3g} ({np.ptp(v):.2g})") for v in values),
        )

    lines = tuple(Row(row["name"], "", cells(row)) for row in rows)
    columns = ("tokens", "GFLOP of a gradient", "ms a step", *metrics)
    return Table(columns, (Section("a clip is read as", lines),))
