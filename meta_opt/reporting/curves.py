"""The figure that compares runs: validation over steps and over time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meta_opt.reporting.figure_style import labelled, legend_above, png_figure, style
from meta_opt.reporting.runs import Run
from meta_opt.reporting.tables import LOSS

_LOG_FROM = 5.0
"""Losses that span more than this factor after the start are drawn on a log scale."""

_RECALL = ("validation/i2t_r5", "validation/t2i_r5")


def plot_curves(path: str | Path, runs: Sequence[Run], reference: Run) -> None:
    """Draws validation loss over steps and over seconds, and recall over steps.

    Args:
        path: PNG file, written atomically.
        runs: one line each.
        reference: whose final validation loss is drawn as a level.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    with png_figure(
        path, (12.5, 4.3), layout=ConstrainedLayoutEngine(wspace=0.06)
    ) as figure:
        by_step, by_time, recall = figure.subplots(1, 3)
        for index, run in enumerate(runs):
            look = style(index)
            steps, losses = run.curve(LOSS)
            by_step.plot(steps, losses, label=run.label, **look)
            by_time.plot(run.seconds(steps), losses, **look)
            steps, values = _mean_recall(run)
            recall.plot(steps, values, **look)
        target = reference.final(LOSS)
        for axes in (by_step, by_time):
            axes.set_ylabel("validation loss (nats)")
            _scale(axes, runs)
            if target is not None:
                level = f"last of {reference.label}: {target:.3f}"
                label = level if axes is by_step else None
                axes.axhline(target, color="#777777", lw=0.9, zorder=0, label=label)
        recall.set_ylabel("validation R@5, mean of both ways (%)")
        recall.set_ylim(bottom=0)
        for axes, label in (
            (by_step, "step"),
            (by_time, "training time (seconds, without compilation)"),
            (recall, "step"),
        ):
            axes.set_xlabel(label)
            axes.set_xlim(left=0)
        for axes in (by_step, recall):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(figure, labelled(by_step))


def _mean_recall(run: Run) -> tuple[list[int], list[float]]:
    one, two = (run.curve(metric) for metric in _RECALL)
    return one[0], [50.0 * (a + b) for a, b in zip(one[1], two[1], strict=True)]


def _scale(axes: Any, runs: Sequence[Run]) -> None:
    """Fits the axis to the part of the curves where the runs differ.

    Where the first fifth of the steps spans far more than the rest, the curves enter
    from above the frame; what still spans much is drawn on a log scale.
    """
    curves = [run.curve(LOSS) for run in runs]
    points = [
        (step, loss)
        for steps, losses in curves
        for step, loss in zip(steps, losses, strict=True)
        if math.isfinite(loss) and loss > 0
    ]
    if not points:
        return
    start = 0.2 * max(step for step, _ in points)
    low = min(loss for _, loss in points)
    late = max((loss for step, loss in points if step >= start), default=low)
    top = max(loss for _, loss in points)
    if late > _LOG_FROM * low:
        axes.set_yscale("log")
    elif low < late and top - low > 2 * (late - low):
        axes.set_ylim(low - 0.06 * (late - low), low + 1.2 * (late - low))
