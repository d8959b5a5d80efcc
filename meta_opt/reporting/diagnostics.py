"""A figure of an optimizer's diagnostics over a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from meta_opt.reporting.figure_style import labelled, legend_above, png_figure, style

_PREFIX = "step/"


def plot_diagnostics(
    path: str | Path, history: Sequence[Mapping[str, int | float]]
) -> None:
    """Plots step sizes by group, skipped steps and the fallback over the steps.

    Args:
        path: the PNG file, written atomically.
        history: results of `meta_opt.diagnostics`, in order.

    Raises:
        ValueError: an empty history, or records that are not diagnostics.
    """
    from matplotlib.ticker import MaxNLocator

    missing = {"steps", "num_steps", "skipped", "fallback"}
    for record in history:
        missing -= set(record)
    if missing:
        raise ValueError(
            f"history of {len(history)} records has no {', '.join(sorted(missing))}: "
            "pass a list of what meta_opt.diagnostics(state) returned"
        )
    groups = dict.fromkeys(k for r in history for k in r if k.startswith(_PREFIX))
    steps = [record["steps"] for record in history]
    with png_figure(path, (12.5, 3.8)) as figure:
        sizes, skips, fallback = figure.subplots(1, 3)
        for index, name in enumerate(groups):
            # Zero, of a step that was skipped, has no place on a log scale.
            points = [(r["steps"], r[name]) for r in history if r.get(name, 0) > 0]
            if points:
                label = name.removeprefix(_PREFIX)
                sizes.plot(*zip(*points, strict=True), label=label, **style(index))
        sizes.set_yscale("log")
        sizes.set_ylabel("RMS step")
        skips.plot(steps, [record["skipped"] for record in history], **style(0))
        skips.set_ylabel("skipped steps so far")
        skips.yaxis.set_major_locator(MaxNLocator(integer=True))
        fallback.plot(steps, [record["fallback"] for record in history], **style(0))
        fallback.set_ylabel("share of the hand-designed rule")
        fallback.set_ylim(-0.05, 1.05)
        end = history[-1]["num_steps"]
        for axes in (sizes, skips, fallback):
            axes.set_xlabel("step")
            if steps[-1] > end:  # What lies beyond is not part of the run.
                axes.axvline(end, color="#777777", lw=0.9, zorder=0)
        legend_above(figure, labelled(sizes))
