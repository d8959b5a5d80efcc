"""Figures of the report on MELTR's throughput."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meta_opt.reporting.curves import RC, labelled, legend_above, style
from meta_opt.studies.meltr_throughput.bars import BARS, MEMORY_BAR
from meta_opt.studies.meltr_throughput.programs import PARTS
from meta_opt.studies.meltr_throughput.summary import Fit, Measured
from meta_opt.types import write_atomic


def plot_overhead(
    path: str | Path,
    cells: Sequence[Measured],
    found: Fit | None,
    intervals: Sequence[int],
) -> None:
    """Draws the cost over equal weights by T at K=10, and by K at each model's most T.

    Args:
        path: the PNG file, written whole or not at all.
        cells: of full training by the default method.
        found: the cost model, drawn as a line through the points of K; None for none.
        intervals: K.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC), write_atomic(path) as temporary:
        figure = Figure(figsize=(9.5, 4.0), layout="constrained")
        by_losses, by_interval = figure.subplots(1, 2)
        for index, model in enumerate(dict.fromkeys(c.case.model for c in cells)):
            of_model = [c for c in cells if c.case.model == model]
            of_model.sort(key=lambda c: c.case.num_losses)
            look = style(index)
            by_losses.plot(
                [c.case.num_losses for c in of_model],
                [1 + c.point(10).overhead for c in of_model],
                label=model,
                **look,
            )
            last = of_model[-1]
            points = [last.point(k) for k in intervals]
            costs = [1 + p.overhead for p in points]
            bare = {**look, "linestyle": "none"}
            by_interval.plot(intervals, costs, **bare)
            if found is not None:
                predicted = [1 + found.model.overhead(p) for p in points]
                line = {**look, "marker": "none"}
                by_interval.plot(intervals, predicted, **line)
        by_losses.axhline(BARS[10], color="#777777", lw=0.9, zorder=0)
        by_losses.set_xlabel("number of losses T; grey: the bar")
        by_losses.set_ylabel("operations of a step / equal weights, K=10")
        by_interval.set_xlabel("interval of meta-steps K; lines: the cost model")
        by_interval.set_ylabel("operations of a step / equal weights")
        by_interval.set_xscale("log")
        by_interval.set_xticks(list(intervals), [str(k) for k in intervals])
        by_interval.minorticks_off()
        legend_above(figure, labelled(by_losses))
        figure.savefig(temporary, format="png", dpi=130)


def plot_devices(path: str | Path, cells: Sequence[Measured]) -> None:
    """Draws messages of each device and peak memory, of cells over several devices.

    Args:
        path: the PNG file, written whole or not at all.
        cells: compiled ones, one bar of each program a cell.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC), write_atomic(path) as temporary:
        figure = Figure(figsize=(9.5, 1.4 + 0.55 * len(cells)), layout="constrained")
        messages, memory = figure.subplots(1, 2, sharey=True)
        rows = np.arange(len(cells))
        height = 0.8 / len(PARTS)
        for number, (label, programs) in enumerate(PARTS.items()):
            places = rows + (number - 1) * height
            look = {"height": height, "color": style(number)["color"], "label": label}
            sent = [c.sent(*programs) / c.sent("equal") for c in cells]
            messages.barh(places, sent, **look)
            peaks = [c.peak(*programs) / c.peak("equal") for c in cells]
            memory.barh(places, peaks, **look)
        messages.set_yticks(rows, [c.case.label for c in cells])
        messages.invert_yaxis()
        messages.set_xlabel("bytes of messages / equal weights'")
        memory.axvline(MEMORY_BAR, color="#777777", lw=0.9)
        memory.set_xlabel("peak memory / equal weights'; grey: the bar")
        legend_above(figure, labelled(messages))
        figure.savefig(temporary, format="png", dpi=130)
