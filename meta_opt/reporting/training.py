"""The figure of one run: losses and the metric that chose, over its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_opt.reporting.figure_style import labelled, legend_above, png_figure, style


def plot_training(
    path: str | Path,
    history: Sequence[Mapping[str, Any]],
    metric: str,
    best_step: int | None = None,
) -> None:
    """Draws training and validation loss, and a validation metric, over the steps.

    Args:
        path: PNG file, written atomically.
        history: a run's records, with ``train/loss`` and ``validation/NAME``.
        metric: name of the validation metric.
        best_step: is marked; None for none.
    """
    with png_figure(path, (10.5, 3.8), dpi=130) as figure:
        losses, metrics = figure.subplots(1, 2)
        for place, name in enumerate(("train/loss", "validation/loss")):
            losses.plot(*_curve(history, name), label=name, **style(place))
        metrics.plot(*_curve(history, f"validation/{metric}"), **style(1))
        losses.set_ylabel("loss")
        metrics.set_ylabel(f"validation {metric}")
        for axes in (losses, metrics):
            axes.set_xlabel("step")
            axes.set_xlim(left=0)
            if best_step is not None:
                axes.axvline(
                    best_step,
                    color="#777777",
                    lw=0.9,
                    zorder=0,
                    label=f"best, step {best_step}" if axes is losses else None,
                )
        legend_above(figure, labelled(losses))


def _curve(
    history: Sequence[Mapping[str, Any]], name: str
) -> tuple[list[int], list[float]]:
    points = [(record["step"], record[name]) for record in history if name in record]
    return [step for step, _ in points], [value for _, value in points]
