"""Figures of the report on MELTR's throughput."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meta_opt.reporting.figure_style import labelled, legend_above, png_figure, style
from meta_opt.studies.meltr_throughput.bars import BARS, MEMORY_BAR
from meta_opt.studies.meltr_throughput.cases import DEFAULT_METHOD
from meta_opt.studies.meltr_throughput.programs import PARTS
from meta_opt.studies.meltr_throughput.summary import Fit, Measured, plain


def plot_overhead(
    path: str | Path,
    cells: Sequence[Measured],
    found: Fit | None,
    intervals: Sequence[int],
) -> None:
    """Plots the cost relative to equal weights over T, K and size of meta-batches.

    The panel of T has K=10; the panel of K has each model's largest T; the panel of
    meta-batches has K=10 and each model's smallest T.

    Args:
        path: the PNG file, written atomically.
        cells: all measured cells.
        found: cost model, drawn as lines in the panel of K; None for none.
        intervals: values of K, the interval of meta-steps.
    """
    every = plain(cells)
    sizes = {label: plain(cells, method=m) for m, label in _META_BATCHES.items()}
    with png_figure(path, (12.5, 4.0), dpi=130) as figure:
        by_losses, by_interval, by_size = figure.subplots(1, 3)
        for index, model in enumerate(dict.fromkeys(c.case.model for c in every)):
            of_model = [c for c in every if c.case.model == model]
            look = style(index)
            by_losses.plot(
                [c.case.num_losses for c in of_model],
                [1 + c.point(10).overhead for c in of_model],
                label=model,
                **look,
            )
            points = [of_model[-1].point(k) for k in intervals]
            costs = [1 + p.overhead for p in points]
            by_interval.plot(intervals, costs, **{**look, "linestyle": "none"})
            if found is not None:
                predicted = [1 + found.model.overhead(p) for p in points]
                by_interval.plot(intervals, predicted, **{**look, "marker": "none"})
            least = of_model[0].case.num_losses
            of_size = {
                place: 1 + c.point(10).overhead
                for place, alike in enumerate(sizes.values())
                for c in alike
                if (c.case.model, c.case.num_losses) == (model, least)
            }
            by_size.plot(list(of_size), list(of_size.values()), **look)
        for axes in (by_losses, by_size):
            axes.axhline(BARS[10], color="#777777", lw=0.9, zorder=0)
            axes.set_ylabel("operations of a step / equal weights, K=10")
        by_losses.set_xlabel("number of losses T; grey: the bar")
        by_interval.set_xlabel("interval of meta-steps K; lines: the cost model")
        by_interval.set_ylabel("operations of a step / equal weights")
        by_interval.set_xscale("log")
        by_interval.set_xticks(list(intervals), [str(k) for k in intervals])
        by_interval.minorticks_off()
        by_size.set_xticks(range(len(sizes)), list(sizes))
        by_size.set_xlabel("batches of a meta-step; grey: the bar")
        legend_above(figure, labelled(by_losses))


_META_BATCHES = {
    DEFAULT_METHOD: "two\nwhole",
    "same_batch": "one\nwhole",
    "half_batch": "two\nhalves",
    "same_half_batch": "one\nhalf",
    "quarter_batch": "two\nquarters",
}


def plot_devices(path: str | Path, cells: Sequence[Measured]) -> None:
    """Plots communication and peak memory per device of multi-device cells.

    Args:
        path: the PNG file, written atomically.
        cells: compiled cells; each has a bar for each program.
    """
    with png_figure(path, (9.5, 1.4 + 0.55 * len(cells)), dpi=130) as figure:
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
