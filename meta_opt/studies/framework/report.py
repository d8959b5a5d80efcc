"""The report on the gain of each part of the framework.

In Muhajab et al., "Meta Optimizer Algorithms for Automated Fine-Tuning of Massive
Multimodal Models", Table 1, the row of the meta optimizer has all five components of
the framework, not the optimizer alone.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from meta_opt.reporting.figure_style import png_figure, style
from meta_opt.reporting.tables import (
    Cell,
    Row,
    Section,
    Table,
    numbers_row,
    plus_minus,
    signed,
    to_markdown,
    write_report,
)
from meta_opt.studies.framework.summary import StageRow

PUBLISHED_GAIN = 3.9
"""Published gain in accuracy of the meta optimizer over AdamW, percentage points."""
_NOTES = (
    "Accuracy is of test data, as in Table 1: of classes, of the sign of sentiment, of "
    "captions' tokens, and for retrieval the mean recall at 1 of both ways. Means over "
    "tasks, 95% interval over seeds. The gain over the first row has its interval over "
    "tasks. Tuned settings are those of 20 trials of plain training (Table 1), in all "
    "rows. A start from a readout exists for classes and scores; other tasks "
    "keep the value of the row without it. `fit` gets the same samples as files, "
    "pictures at 224 pixels, and chooses sizes, batch size, number of steps, trained "
    "layers and the checkpoint itself; the other rows have the suite's, 64 pixels and "
    "eight epochs."
)


def write_framework(
    folder: str | Path, rows: Sequence[StageRow], command: str, missing: int
) -> str:
    """Writes ``framework.md``, ``framework.json`` and ``framework.png``.

    Args:
        folder: folder of the results.
        rows: one row for each stage; the others are compared with the first.
        command: command line that makes the report.
        missing: number of cells that are not measured yet.

    Returns:
        The Markdown.
    """
    parts = [f"`{command}`"]
    if missing:
        parts.append(f"{missing} cells are not measured yet.")
    if rows:
        parts += [
            f"## Mean of {rows[0].tasks} tasks",
            to_markdown(stages_table(rows)),
            f"Published: {PUBLISHED_GAIN} points over AdamW.",
            "## Each task: accuracy (%)",
            to_markdown(tasks_table(rows)),
            _NOTES,
        ]
        plot_stages(Path(folder) / "framework.png", rows)
    values = {"command": command, "rows": [dataclasses.asdict(row) for row in rows]}
    write_report(folder, "framework", parts, values)
    return "\n\n".join(parts)


def stages_table(rows: Sequence[StageRow]) -> Table:
    """Returns a row for each stage."""
    columns = ("accuracy (%)", "over the first row", "macro F1")
    lines = []
    for row in rows:
        texts = (plus_minus(row.accuracy), signed(row.gain), f"{row.macro_f1:.3f}")
        lines.append(Row(row.stage, "", tuple(map(Cell, texts))))
    return Table(columns, (Section("", tuple(lines)),))


def tasks_table(rows: Sequence[StageRow]) -> Table:
    """Returns a row for each task, a column for each stage."""
    lines = tuple(
        numbers_row(task, "higher", [row.by_task[task] for row in rows], 1)
        for task in rows[0].by_task
    )
    return Table(tuple(row.stage for row in rows), (Section("", lines),))


def plot_stages(path: str | Path, rows: Sequence[StageRow]) -> None:
    """Draws the gain of each stage over the first one, with its interval.

    Args:
        path: the PNG file, written atomically.
        rows: one row for each stage.
    """
    with png_figure(path, (8.0, 0.5 * len(rows) + 1.4)) as figure:
        axes = figure.subplots()
        axes.grid(axis="y", visible=False)
        for i, row in enumerate(rows):
            gain = row.gain
            mean = 0.0 if gain is None else gain.mean
            color = style(1 if "AdamW" in row.stage else 0)["color"]
            axes.barh(i, mean, color=color, height=0.6)
            text = f"{row.accuracy.mean:.1f}%"
            if gain is not None and gain.low is not None and gain.high is not None:
                axes.plot([gain.low, gain.high], [i, i], color="#333333", lw=1.2)
                text += f" ({mean:+.1f})"
            edge = max(0.0, mean, (gain and gain.high) or 0.0)
            axes.text(edge + 0.15, i, text, va="center", fontsize=9)
        axes.axvline(0, color="#333333", lw=0.8)
        axes.axvline(PUBLISHED_GAIN, color="#777777", lw=0.9, ls="--", zorder=0)
        label = f"published: +{PUBLISHED_GAIN}"
        axes.text(PUBLISHED_GAIN, -0.75, label, ha="center", size=8, color="#777777")
        axes.set_yticks(range(len(rows)), [row.stage for row in rows])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel(f"points of accuracy over {rows[0].stage}, mean of the tasks")
