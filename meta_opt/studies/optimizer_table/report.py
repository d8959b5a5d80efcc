"""Table 1 and Figures 2 and 3 of the framework's paper, with the published figures.

Muhajab et al., "Meta Optimizer Algorithms for Automated Fine-Tuning of Massive
Multimodal Models". The paper names no model, data set, seed or hardware.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.reporting.figure_style import labelled, legend_above, png_figure, style
from meta_opt.reporting.tables import (
    Row,
    Section,
    Table,
    numbers_row,
    to_markdown,
    write_report,
)
from meta_opt.studies.optimizer_table.summary import full_runs

Values = Mapping[str, Any]

LABELS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSProp",
    "lion": "Lion",
    "learned": "learned",
}
KINDS = {"all": "All parameters", "lora": "LoRA"}
PUBLISHED = {
    "accuracy (%)": (88.4, 91.2, 92.5, 90.7, 93.1, 96.4),
    "F1": (0.87, 0.90, 0.91, 0.89, 0.92, 0.95),
    "convergence (epochs)": (42, 31, 27, 35, 24, 16),
    "training time (h)": (9.8, 8.1, 7.4, 8.7, 6.9, 5.1),
    "GPU memory (GB)": (22, 24, 24, 23, 22, 19),
}
"""Table 1 as published, in the order of `LABELS`."""
CLAIMS = (
    ("accuracy_over_best", "accuracy over the best of five (points)", 3.3, 2),
    ("accuracy_over_adamw", "accuracy over AdamW (points)", 3.9, 2),
    ("f1_over_best", "macro F1 over the best of five", 0.03, 3),
    ("f1_over_adamw", "macro F1 over AdamW", 0.04, 3),
    ("budget_to_adamw", "share of the length to AdamW's final loss", 0.59, 2),
    ("epochs_over_adamw", "epochs to AdamW's final loss, over its own", 0.59, 2),
    ("epochs_over_best", "the same over the quickest of five", 0.67, 2),
    ("time_over_adamw", "time to AdamW's final loss, over its own", 0.69, 2),
    ("memory_over_adamw", "peak memory over AdamW's", 0.79, 2),
)
"""Field of `Claims`, label, published value and number of digits."""
NOTES = (
    "Accuracy and macro F1 are of test data: of classes, of the sign of sentiment "
    "(Acc-2), of captions' tokens given those before, and for retrieval the mean "
    "recall at 1 of both ways; F1 where there are classes. Means over tasks, 95% "
    "intervals over seeds. Convergence: the first epoch whose validation loss is "
    "within 1% of the run's best for three epochs. Epochs to AdamW: until the "
    "mean validation loss of the seeds is at or below the final one of tuned AdamW; a "
    "task where it never is counts as 4 times the run. Time is that of steps measured "
    "side by side, without compilation, search and evaluation; `-` until they are. "
    "Memory is the peak of the compiled step, by the compiler's analysis."
)


def write_table1(
    folder: str | Path,
    records: Sequence[Values],
    cells: Sequence[Values],
    lines: Sequence[Values],
    claims: Sequence[Values],
    total: int,
    command: str,
) -> str:
    """Writes ``table1.md``, ``table1.json``, ``figure2_*.png`` and ``figure3.png``.

    Args:
        folder: folder of the results.
        records: records of the cells.
        cells: fields of `meta_opt.studies.optimizer_table.summary.CellRow`.
        lines: fields of `OptimizerRow` of the same module.
        claims: fields of `Claims` of the same module.
        total: number of cells of the whole table.
        command: command line that makes the report.

    Returns:
        The Markdown.
    """
    folder = Path(folder)
    parts = [f"{len(records)} of {total} cells are measured. `{command}`"]
    kinds = list(dict.fromkeys(line["trainable"] for line in lines))
    for kind in kinds:
        of_kind = [line for line in lines if line["trainable"] == kind]
        tasks = of_kind[0]["tasks"]
        parts += [
            f"## {KINDS[kind]}: mean of {_counted(tasks)}",
            to_markdown(lines_table(of_kind)),
        ]
    if claims:
        parts += ["## Published and measured", to_markdown(claims_table(claims))]
    parts += ["## As published", to_markdown(published_table())]
    for kind in dict.fromkeys(cell["trainable"] for cell in cells):
        parts += [
            f"## Each task, {KINDS[kind]}",
            to_markdown(tasks_table([c for c in cells if c["trainable"] == kind])),
        ]
    parts.append(NOTES)
    write_report(
        folder,
        "table1",
        parts,
        {"command": command, "cells": cells, "lines": lines, "claims": claims},
    )
    for kind in dict.fromkeys(record["variant"] for record in records):
        plot_losses(
            folder / f"figure2_{kind}.png",
            [r for r in records if r["variant"] == kind],
        )
    if lines:
        plot_cost(folder / "figure3.png", lines)
    return "\n\n".join(parts)


def lines_table(lines: Sequence[Values]) -> Table:
    """Returns the main table, with a column for each optimizer."""

    def row(label: str, better: str, values: Sequence[Any], digits: int) -> Row:
        return numbers_row(label, better, values, digits)

    def each(name: str, scale: float = 1.0) -> list[float | None]:
        values = [line[name] for line in lines]
        return [None if x is None else scale * x for x in values]

    def half(name: str) -> list[float | None]:
        found = [line[name] for line in lines]
        return [None if x["low"] is None else x["mean"] - x["low"] for x in found]

    rows = (
        row("accuracy (%)", "higher", [x["accuracy"]["mean"] for x in lines], 1),
        row("± of 95%", "", half("accuracy"), 1),
        row("macro F1", "higher", [x["macro_f1"]["mean"] for x in lines], 3),
        row("± of 95%", "", half("macro_f1"), 3),
        row("convergence (epochs)", "", each("convergence"), 1),
        row("epochs to AdamW's final loss", "lower", each("epochs_to_adamw"), 1),
        row("tasks that miss it", "lower", each("missed"), 0),
        row("training time (s)", "lower", each("seconds"), 1),
        row("time to AdamW's final loss (s)", "lower", each("seconds_to_adamw"), 1),
        row("peak memory (MiB)", "lower", each("peak_bytes", 2**-20), 0),
        row("optimizer state (MiB)", "lower", each("optimizer_bytes", 2**-20), 1),
    )
    names = tuple(LABELS[line["optimizer"]] for line in lines)
    return Table(names, (Section("", rows),))


def claims_table(claims: Sequence[Values]) -> Table:
    """Returns the table of published and measured gains of the meta-optimizer."""
    columns = ("published", *map(_scope, claims))
    rows = tuple(
        numbers_row(label, "", [published, *(c[name] for c in claims)], digits)
        for name, label, published, digits in CLAIMS
    )
    return Table(columns, (Section("", rows),))


def _scope(claim: Values) -> str:
    unseen = "unseen data, " if claim["unseen"] else ""
    return f"{KINDS[claim['trainable']]}, {unseen}{_counted(claim['tasks'])}"


def _counted(tasks: int) -> str:
    return f"{tasks} task{'s' * (tasks != 1)}"


def published_table() -> Table:
    """Returns Table 1 as published."""
    rows = tuple(
        numbers_row(label, "", values, 2 if label == "F1" else 1)
        for label, values in PUBLISHED.items()
    )
    return Table(tuple(LABELS.values()), (Section("", rows),))


def tasks_table(cells: Sequence[Values]) -> Table:
    """Sections are tasks; rows are accuracy, loss and epochs to AdamW's loss."""
    names = list(dict.fromkeys(cell["optimizer"] for cell in cells))
    sections = []
    for task in dict.fromkeys(cell["task"] for cell in cells):
        found = {c["optimizer"]: c for c in cells if c["task"] == task}

        def values(read: Any, found: Any = found) -> list[Any]:
            return [read(found[name]) if name in found else None for name in names]

        rows = (
            numbers_row(
                "accuracy (%)", "higher", values(lambda c: c["accuracy"]["mean"]), 1
            ),
            numbers_row(
                "validation loss", "lower", values(lambda c: c["validation_loss"]), 3
            ),
            numbers_row(
                "epochs to AdamW's", "lower", values(lambda c: c["epochs_to_adamw"]), 1
            ),
        )
        sections.append(Section(task, rows))
    return Table(tuple(LABELS[name] for name in names), tuple(sections))


def plot_losses(path: Path, records: Sequence[Values]) -> None:
    """Plots Figure 2: training loss over epochs, log scale, a panel for each task.

    Args:
        path: the PNG file.
        records: records of cells with the same ``trainable``.
    """
    from matplotlib.ticker import LogLocator

    tasks = list(dict.fromkeys(record["task"] for record in records))
    columns = min(4, len(tasks))
    height = -(-len(tasks) // columns)
    with png_figure(path, (3.3 * columns, 2.9 * height), dpi=130) as figure:
        panels = np.ravel(figure.subplots(height, columns, squeeze=False))
        for panel in panels[len(tasks) :]:
            panel.set_visible(False)
        shown: dict[str, Any] = {}
        for task, panel in zip(tasks, panels, strict=False):
            for record in (r for r in records if r["task"] == task):
                runs = [run["epochs"] for run in full_runs(record)]
                losses = np.mean([[e["train_loss"] for e in run] for run in runs], 0)
                name = record["optimizer"]
                # Reversed drawing order puts the learned optimizer on top.
                order = [*reversed(LABELS)].index(name)
                (line,) = panel.plot(
                    [e["epoch"] for e in runs[0]], losses, **style(order)
                )
                shown[LABELS[name]] = line
            panel.set_title(task, fontsize=10)
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("")
            panel.set_xlabel("epoch")
        panels[0].set_ylabel("training loss")
        legend_above(figure, shown, 2 * columns)


def plot_cost(path: Path, lines: Sequence[Values]) -> None:
    """Plots Figure 3: time and peak memory of a run, means over tasks.

    Args:
        path: the PNG file.
        lines: rows of all optimizers, for each value of ``trainable``.
    """
    kinds = list(dict.fromkeys(line["trainable"] for line in lines))
    names = [n for n in LABELS if any(line["optimizer"] == n for line in lines)]
    panels = [
        ("seconds", "training time of a run (s)", 1.0),
        ("seconds_to_adamw", "time to AdamW's final loss (s)", 1.0),
        ("peak_bytes", "peak memory of a step (MiB)", 2.0**-20),
    ]
    # Without step times, only memory is plotted.
    panels = [p for p in panels if all(x[p[0]] is not None for x in lines)]
    width = 12.5 * len(panels) / 3 if len(panels) > 1 else 6.0
    with png_figure(path, (width, 3.8), dpi=130) as figure:
        grid = np.ravel(figure.subplots(1, len(panels), squeeze=False))
        for axes, (field, label, scale) in zip(grid, panels, strict=True):
            for index, kind in enumerate(kinds):
                of_kind = {x["optimizer"]: x for x in lines if x["trainable"] == kind}
                there = [n for n in names if n in of_kind]
                places = np.asarray([names.index(n) for n in there])
                axes.bar(
                    places + 0.4 * (index - 0.5 * (len(kinds) - 1)),
                    [scale * of_kind[n][field] for n in there],
                    0.38,
                    label=KINDS[kind],
                    color=style(index)["color"],
                )
            axes.set_xticks(range(len(names)), [LABELS[n] for n in names], rotation=20)
            axes.set_ylabel(label)
            axes.grid(axis="x", visible=False)
        legend_above(figure, labelled(axes))
