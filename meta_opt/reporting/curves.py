"""The figure that compares runs: validation over steps and over time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_opt.reporting.runs import Run
from meta_opt.reporting.tables import LOSS
from meta_opt.types import write_atomic

# Okabe and Ito's palette, in an order that also differs in lightness; markers and
# dashes distinguish the runs without colour.
_STYLES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#8A5A83", "D", ":"),
    ("#B58900", "v", (0, (5, 1))),
    ("#333333", "P", (0, (3, 1, 1, 1))),
)
_LOG_FROM = 5.0
"""Losses that span more than this factor after the start are drawn on a log scale."""

_RECALL = ("validation/i2t_r5", "validation/t2i_r5")


RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}


def plot_curves(path: str | Path, runs: Sequence[Run], reference: Run) -> None:
    """Draws validation loss over steps and over seconds, and recall over steps.

    Args:
        path: PNG file, written atomically.
        runs: one line each.
        reference: whose final validation loss is drawn as a level.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(RC), write_atomic(path) as temporary:
        figure = Figure(
            figsize=(12.5, 4.3), layout=ConstrainedLayoutEngine(wspace=0.06)
        )
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
        figure.savefig(temporary, format="png", dpi=150)


def _mean_recall(run: Run) -> tuple[list[int], list[float]]:
    one, two = (run.curve(metric) for metric in _RECALL)
    return one[0], [50.0 * (a + b) for a, b in zip(one[1], two[1], strict=True)]


def style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of a line; earlier ones lie on top."""
    color, marker, dashes = _STYLES[index % len(_STYLES)]
    return {
        "color": color,
        "marker": marker,
        "linestyle": dashes,
        # The first run, whose line is the subject, lies on top.
        "zorder": 10 - index,
    }


def legend_above(figure: Any, lines: Mapping[str, Any], columns: int = 0) -> None:
    """Puts one legend for all panels above them.

    Args:
        figure: Matplotlib figure with a constrained layout.
        lines: Matplotlib artists by label.
        columns: maximum number of labels per row; 0 for all.
    """
    figure.legend(
        list(lines.values()),
        list(lines),
        loc="outside upper center",
        ncols=max(1, min(columns or len(lines), len(lines))),
        frameon=False,
    )


def labelled(axes: Any) -> dict[str, Any]:
    """What a panel shows by label, for `legend_above`."""
    handles, labels = axes.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


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
