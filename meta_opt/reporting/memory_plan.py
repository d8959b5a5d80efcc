"""The report on memory plans: Markdown and JSON in one folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_opt.reporting.tables import Cell, Row, Section, Table, to_text, write_table

Values = Mapping[str, Any]

_PARTS = ("parameters", "frozen", "gradients", "optimizer", "temporary", "total")
_LABELS = {
    "frozen": "frozen parameters",
    "optimizer": "optimizer state",
    "temporary": "activations and buffers",
    "total": "peak",
}
_GIB = 2**30
_NOTES = """\
- GiB of each device, of the compiled step; a step whose parameters, gradients and \
state alone are too much is not compiled, and its peak is a lower bound.
- Operations are those of the matrix products, recomputation included."""


def write_memory_plan(folder: str | Path, rows: Sequence[Values], facts: Values) -> str:
    """Writes ``memory_plan.md`` and ``memory_plan.json``.

    Args:
        folder: output folder, created if needed.
        rows: fields of `meta_opt.finetuning.planning.StepPlan` with ``trainable``,
            ``name`` of the optimizer, ``fits`` and ``largest_examples``.
        facts: facts about how they were measured.

    Returns:
        The table as text.
    """
    title = "Memory of a fine-tuning step"
    return write_table(folder, "memory_plan", title, _table(rows), rows, facts, _NOTES)


def memory_table(rows: Sequence[Values]) -> str:
    """The table for a terminal."""
    return to_text(_table(rows))


def _table(rows: Sequence[Values]) -> Table:
    """A section for each way of training, a column for each optimizer."""
    optimizers = tuple(dict.fromkeys(row["name"] for row in rows))
    sections = []
    for trainable in dict.fromkeys(row["trainable"] for row in rows):
        found = {r["name"]: r for r in rows if r["trainable"] == trainable}
        columns = [found[name] for name in optimizers]
        adamw = found.get("adamw")

        def row(label: str, texts: Sequence[str]) -> Row:
            return Row(label, "", tuple(Cell(text) for text in texts))

        lines = [
            row(_LABELS.get(part, part), [_gib(c[part]) for c in columns])
            for part in _PARTS
        ]
        lines.append(row("peak over AdamW's", [_ratio(c, adamw) for c in columns]))
        lines.append(row("fits", [_fits(c) for c in columns]))
        lines.append(row("dominated by", [_dominant(c) for c in columns]))
        lines.append(
            row(
                "TFLOP a device and step", [f"{c['flops'] / 1e12:.3g}" for c in columns]
            )
        )
        exchanges = [
            "-" if c["collectives"] is None else str(c["collectives"]) for c in columns
        ]
        lines.append(row("collectives in the program", exchanges))
        if any(c["largest_examples"] is not None for c in columns):
            largest = [str(c["largest_examples"]) for c in columns]
            lines.append(row("largest micro-batch, examples a shard", largest))
        title = {"all": "full fine-tuning", "lora": "LoRA"}.get(trainable, trainable)
        sections.append(Section(title, tuple(lines)))
    return Table(optimizers, tuple(sections))


def _gib(value: int | None) -> str:
    return "-" if value is None else f"{value / _GIB:.2f}"


def _ratio(row: Values, adamw: Values | None) -> str:
    if adamw is None or row["temporary"] is None or adamw["temporary"] is None:
        return "-"
    return f"{row['total'] / adamw['total']:.2f}"


def _fits(row: Values) -> str:
    return {True: "yes", False: "no", None: "unknown"}[row["fits"]]


def _dominant(row: Values) -> str:
    known = {part: row[part] or 0 for part in _PARTS[:-1]}
    largest = max(known, key=known.__getitem__)
    return _LABELS.get(largest, largest)
