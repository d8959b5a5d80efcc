"""Tables that compare runs, with a column per run and a row per measurement."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_opt.markdown import markdown_table
from meta_opt.metrics.convergence import steps_to_target
from meta_opt.metrics.intervals import Interval
from meta_opt.reporting.runs import Run
from meta_opt.run_log import describe_environment
from meta_opt.text_files import write_text

LOSS = "validation/loss"
_NOT_REACHED = "not reached"
_NONE = "-"

Reader = Callable[[Run], float | None]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A formatted measurement.

    Attributes:
        text: formatted value.
        best: whether no other run has a better formatted value.
    """

    text: str
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement of all runs.

    Attributes:
        label: label of the row, with the unit.
        better: whether ``lower`` or ``higher`` values are better; "" for neither.
        cells: cells, one per run.
    """

    label: str
    better: str
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """Rows that were measured on the same data.

    Attributes:
        title: title of the section, such as the task.
        rows: rows in order.
    """

    title: str
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A comparison of runs.

    Attributes:
        columns: label of each run.
        sections: sections in order.
    """

    columns: tuple[str, ...]
    sections: tuple[Section, ...]


def comparison(
    runs: Sequence[Run],
    reference: Run,
    *,
    validation: str = "validation",
    test: str = "test",
) -> Table:
    """Compares validation loss, steps to the reference's loss, test metrics, cost.

    Args:
        runs: runs, one per column.
        reference: run whose final validation loss is the target of ``steps to``.
        validation: title of the section on validation data.
        test: title of the section on test data.

    Raises:
        ValueError: the reference has no validation loss.
    """
    target = reference.final(LOSS)
    if target is None:
        raise ValueError(f"{reference.label!r} has no {LOSS} to compare with")

    def steps_to(run: Run) -> float | None:
        if len(run.curve(LOSS)[0]) < 2:
            return None
        step = steps_to_target(*run.curve(LOSS), target)
        return math.inf if step is None else step

    def row(
        label: str, better: str, read: Reader, digits: int, scale: float = 1
    ) -> Row:
        return numbers_row(label, better, [read(run) for run in runs], digits, scale)

    def scored(name: str) -> Reader:
        return lambda run: run.result.get("test", {}).get(name)

    def cost(name: str) -> Reader:
        return lambda run: run.result.get(name)

    def bytes_each(run: Run) -> float | None:
        if "optimizer_bytes" not in run.result:
            return None
        return run.result["optimizer_bytes"] / run.result["trainable"]

    on_validation = [
        row("loss", "lower", lambda run: run.final(LOSS), 3),
        row(f"steps to the last loss of {reference.label}", "lower", steps_to, 0),
    ]
    on_test = []
    for way, words in (("i2t", "image to text"), ("t2i", "text to image")):
        on_test += [
            row(f"{words}, R@{k} (%)", "higher", scored(f"{way}_r{k}"), 1, 100)
            for k in (1, 5, 10)
        ]
        on_test += [
            row(f"{words}, median rank", "lower", scored(f"{way}_medr"), 1),
        ]
    on_test += [
        row("zero-shot accuracy (%)", "higher", scored("zero_shot_accuracy"), 1, 100),
        row("zero-shot macro F1 (%)", "higher", scored("zero_shot_macro_f1"), 1, 100),
    ]
    costs = [
        row("training (seconds)", "lower", cost("train_seconds"), 1),
        row("compilation (seconds)", "lower", cost("compile_seconds"), 1),
        row("optimizer state (bytes a parameter)", "lower", bytes_each, 2),
    ]
    if any(run.result.get("nonfinite") for run in runs):
        costs.append(row("steps with non-finite loss", "lower", cost("nonfinite"), 0))
    return Table(
        columns=tuple(run.label for run in runs),
        sections=(
            Section(validation, tuple(on_validation)),
            Section(test, tuple(on_test)),
            Section("cost", tuple(costs)),
        ),
    )


def numbers_row(
    label: str,
    better: str,
    values: Sequence[float | None],
    digits: int,
    scale: float = 1,
    infinite: str = _NOT_REACHED,
) -> Row:
    """Formats values and marks the best formatted ones, including ties.

    Args:
        label: label of the row, with the unit.
        better: whether ``lower`` or ``higher`` values are better; "" for neither.
        values: values by column; None is shown as ``-``.
        digits: number of decimals.
        scale: factor that scales the values.
        infinite: text to show for infinity.
    """
    # Compare rounded values: differences below the precision are ties.
    shown = [None if v is None else round(v * scale, digits) for v in values]
    real = [v for v in shown if v is not None and math.isfinite(v)]
    best = None
    if better and len(set(real)) > 1:
        best = min(real) if better == "lower" else max(real)

    def text(value: float | None) -> str:
        if value is None:
            return _NONE
        return infinite if math.isinf(value) else f"{value:.{digits}f}"

    return Row(
        label, better, tuple(Cell(text(v), v is not None and v == best) for v in shown)
    )


def plus_minus(found: Interval) -> str:
    """Formats a mean with the half-width of its interval, to one decimal.

    >>> plus_minus(Interval(57.5, 53.5, 61.5)), plus_minus(Interval(62.8, None, None))
    ('57.5 ± 4.0', '62.8')
    """
    half = "" if found.low is None else f" ± {found.mean - found.low:.1f}"
    return f"{found.mean:.1f}{half}"


def signed(found: Interval | None) -> str:
    """Formats a difference with its interval, to one decimal; "" for None.

    >>> signed(Interval(2.04, -0.9, 4.9)), signed(Interval(2.04, None, None))
    ('+2.0 [-0.9, +4.9]', '+2.0')
    """
    if found is None:
        return ""
    mean = f"{found.mean:+.1f}"
    if found.low is None or found.high is None:
        return mean
    return f"{mean} [{found.low:+.1f}, {found.high:+.1f}]"


def to_text(table: Table) -> str:
    """Formats a table for a terminal; ``*`` marks the best of a row."""
    arrows = {"lower": "↓", "higher": "↑", "": " "}
    headers = [column.split() for column in table.columns]
    height = max(map(len, headers))
    rows = [row for section in table.sections for row in section.rows]
    first = max(len(row.label) for row in rows) + 4
    widths = [
        2 + max(len(w) for w in (*header, *(r.cells[i].text + "*" for r in rows)))
        for i, header in enumerate(headers)
    ]
    lines = []
    for level in range(height):
        words = [
            h[level - height + len(h)] if level >= height - len(h) else ""
            for h in headers
        ]
        cells = "".join(f"{w + ' ':>{n}}" for w, n in zip(words, widths, strict=True))
        lines.append((" " * first + cells).rstrip())
    rule = "-" * (first + sum(widths))
    for section in table.sections:
        lines += [rule, section.title]
        for row in section.rows:
            label = f"  {row.label} {arrows[row.better]}"
            cells = "".join(
                f"{cell.text + ('*' if cell.best else ' '):>{width}}"
                for cell, width in zip(row.cells, widths, strict=True)
            )
            lines.append(f"{label:<{first}}{cells}".rstrip())
    lines += [rule, "↓ lower is better, ↑ higher is better, * best of the row"]
    return "\n".join(lines)


def to_markdown(table: Table) -> str:
    """Formats a table for Markdown; the best of a row is bold.

    >>> row = Row("loss", "lower", (Cell("1.5", best=True), Cell("2.0")))
    >>> print(to_markdown(Table(("ours", "theirs"), (Section("", (row,)),))))
    | | ours | theirs |
    |---|---:|---:|
    | loss ↓ | **1.5** | 2.0 |
    """
    arrows = {"lower": " ↓", "higher": " ↑", "": ""}
    rows: list[list[str]] = []
    for section in table.sections:
        if section.title:
            rows.append([f"*{section.title}*", *[""] * len(table.columns)])
        for row in section.rows:
            cells = [f"**{c.text}**" if c.best else c.text for c in row.cells]
            rows.append([row.label + arrows[row.better], *cells])
    return markdown_table(["", *table.columns], rows)


def fact_list(facts: Mapping[str, Any]) -> str:
    """Formats facts about how something was measured as a Markdown list.

    >>> print(fact_list({"seeds": 3, "steps": 200}))
    - seeds: 3
    - steps: 200
    """
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())


def write_report(
    folder: str | Path, name: str, parts: Sequence[str], values: Mapping[str, Any]
) -> None:
    """Writes ``name.md`` and ``name.json``.

    Args:
        folder: output folder, created if needed.
        name: name of both files, without suffix.
        parts: paragraphs of the Markdown; empty ones are left out.
        values: values of the JSON file; numbers that JSON lacks become null. Where they
            were written, ``environment``, is added.
    """
    values = {**values, "environment": describe_environment()}
    text = json.dumps(_finite(values), indent=1, allow_nan=False)
    markdown = "\n\n".join(filter(None, parts))
    for suffix, content in (("md", markdown), ("json", text)):
        write_text(Path(folder) / f"{name}.{suffix}", content + "\n")


def write_table(
    folder: str | Path,
    name: str,
    title: str,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    notes: str = "",
) -> str:
    """Writes ``name.md`` and ``name.json``, a report of one table.

    Args:
        folder: output folder, created if needed.
        name: name of both files, without suffix.
        title: title of the report.
        table: table to show.
        rows: JSON values behind the table.
        facts: facts about how they were measured, by name.
        notes: Markdown below the table.

    Returns:
        The table as text.
    """
    parts = [f"# {title}", to_markdown(table), notes, fact_list(facts)]
    write_report(folder, name, parts, {"facts": dict(facts), "rows": list(rows)})
    return to_text(table)


def _finite(value: Any) -> Any:
    """Replaces numbers that JSON lacks (NaN, infinities) by None."""
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
