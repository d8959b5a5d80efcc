"""Heat maps of accuracy over training and test widths, and over corruptions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.data.preprocessing.corruptions import CORRUPTIONS, SEVERITIES
from meta_opt.reporting.figure_style import png_figure
from meta_opt.studies.stress.conditions import Condition
from meta_opt.studies.stress.summary import ConditionRow

_PER_ROW = 3


def plot_widths(path: str | Path, rows: Sequence[ConditionRow]) -> bool:
    """Plots accuracy over training and test widths, with a panel for each model.

    Args:
        path: the PNG file, written atomically.
        rows: rows of all models; only conditions without other changes are plotted.

    Returns:
        Whether there was anything to plot, that is, whether widths were varied.
    """
    panels: dict[str, dict[tuple[int, int], ConditionRow]] = {}
    for row in rows:
        c = row.condition
        if c.train_px and c == Condition(train_px=c.train_px, test_px=c.test_px):
            panels.setdefault(row.model, {})[c.train_px, c.test_px] = row
    widths = {pair for panel in panels.values() for pair in panel}
    train, test = (sorted({pair[i] for pair in widths}) for i in (0, 1))
    if len(widths) < 2:
        return False
    _plot(
        path,
        {
            model: [[panel.get((a, b)) for b in test] for a in train]
            for model, panel in panels.items()
        },
        rows=[str(width) for width in train],
        columns=[str(width) for width in test],
        row_label="width in training (px)",
        column_label="width in the test (px)",
    )
    return True


def plot_corruptions(path: str | Path, rows: Sequence[ConditionRow]) -> bool:
    """Plots accuracy over corruptions and severities, with a panel for each model.

    Args:
        path: the PNG file, written atomically.
        rows: rows of all models; if corruptions were added to several conditions of a
            model, each condition has a panel.

    Returns:
        Whether there was anything to plot, that is, whether there are corruptions.
    """
    panels: dict[tuple[str, Condition], dict[tuple[str, int], ConditionRow]] = {}
    for row in rows:
        key = (row.model, row.condition.uncorrupted)
        place = (row.condition.corruption, row.condition.severity)
        panels.setdefault(key, {})[place] = row
    panels = {k: v for k, v in panels.items() if any(name for name, _ in v)}
    found = {name for panel in panels.values() for name, _ in panel}
    names = [name for name in CORRUPTIONS if name in found]
    if not names:
        return False
    several = len({condition for _, condition in panels}) > 1
    _plot(
        path,
        {
            model + f"\n{condition.name.removeprefix('clean, ')}" * several: [
                # Severity 0 is the test without corruption, in every row.
                [panel.get((name if s else "", s)) for s in (0, *SEVERITIES)]
                for name in names
            ]
            for (model, condition), panel in panels.items()
        },
        rows=[name.replace("_", " ") for name in names],
        columns=["clean", *map(str, SEVERITIES)],
        row_label="",
        column_label="severity",
    )
    return True


def _plot(
    path: str | Path,
    panels: Mapping[str, Sequence[Sequence[ConditionRow | None]]],
    rows: Sequence[str],
    columns: Sequence[str],
    row_label: str,
    column_label: str,
) -> None:
    """Plots heat maps with a common colour scale.

    Cells are annotated with the accuracy and the half-width of its interval.
    """
    accuracy, halves = (
        {
            title: np.asarray(
                [[np.nan if x is None else 100 * read(x) for x in row] for row in grid]
            )
            for title, grid in panels.items()
        }
        for read in (_mean, _half_width)
    )
    known = np.concatenate([x[np.isfinite(x)] for x in accuracy.values()])
    low, high = known.min(), max(known.max(), known.min() + 1)
    wide = min(_PER_ROW, len(panels))
    high_by = -(-len(panels) // wide)
    # Space for numbers of five characters, and for row labels.
    width, height = 1.6 + 0.62 * len(columns), 1.1 + 0.45 * len(rows)
    with png_figure(
        path, (wide * width + 1.2, max(2.6, high_by * height)), dpi=130
    ) as figure:
        axes = np.ravel(figure.subplots(high_by, wide, squeeze=False))
        for panel in axes[len(panels) :]:
            panel.set_visible(False)
        image: Any = None
        for place, (panel, (title, values)) in enumerate(
            zip(axes, accuracy.items(), strict=False)
        ):
            panel.grid(visible=False)
            panel.set_facecolor("#e8e8e8")
            image = panel.imshow(
                np.ma.masked_invalid(values),
                vmin=low,
                vmax=high,
                cmap="viridis",
                aspect="auto",
            )
            for (i, j), value in np.ndenumerate(values):
                missing = not np.isfinite(value)
                dark = missing or (value - low) > 0.55 * (high - low)
                panel.text(
                    j,
                    i,
                    "-" if missing else f"{value:.1f}\n±{halves[title][i, j]:.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    linespacing=1.0,
                    color="#1b1f24" if dark else "white",
                )
            panel.set_title(title, fontsize=10)
            panel.set_xticks(range(len(columns)), columns)
            panel.set_xlabel(column_label)
            left = place % wide == 0
            panel.set_yticks(range(len(rows)), rows if left else [])
            panel.set_ylabel(row_label if left else "")
        figure.colorbar(
            image, ax=list(axes), label="accuracy (%)", fraction=0.03, aspect=30
        )


def _mean(row: ConditionRow) -> float:
    return row.metrics["accuracy"].mean


def _half_width(row: ConditionRow) -> float:
    accuracy = row.metrics["accuracy"]
    if accuracy.low is None or accuracy.high is None:
        return float("nan")
    return (accuracy.high - accuracy.low) / 2
