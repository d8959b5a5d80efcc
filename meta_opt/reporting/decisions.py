"""The figure of what the controller decided in a run, by modality group."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_opt.reporting.figure_style import labelled, legend_above, png_figure, style

_PREFIX = "optimizer/"
_PANELS = (
    ("step", "multiplier of the step", True),
    ("orthogonal", "weight of the orthogonal direction", False),
    ("adam", "weight of the Adam direction", False),
    ("momentum", "weight of the momentum", False),
    ("weight_decay", "weight decay", True),
    ("one_minus_b1", "1 - decay of the momentum", True),
)


_NARROW, _WIDE = 1.5, 3.0


def plot_decisions(path: str | Path, history: Sequence[Mapping[str, Any]]) -> bool:
    """Draws step, mixture and decays over the steps, a line for each group.

    Args:
        path: PNG file, written atomically.
        history: a run's records, those with ``optimizer/GROUP/NAME`` are read.

    Returns:
        Whether there was anything to draw: baselines decide nothing.
    """
    from matplotlib.ticker import LogLocator

    records = [r for r in history if any(key.startswith(_PREFIX) for key in r)]
    if not records:
        return False
    groups = dict.fromkeys(
        key.split("/")[1] for r in records for key in r if key.startswith(_PREFIX)
    )
    with png_figure(path, (12.5, 6.4)) as figure:
        axes = figure.subplots(2, 3)
        for (name, label, log), panel in zip(_PANELS, axes.flat, strict=True):
            for index, group in enumerate(groups):
                points = [
                    (r["step"], r[f"{_PREFIX}{group}/{name}"])
                    for r in records
                    if f"{_PREFIX}{group}/{name}" in r
                ]
                panel.plot(*zip(*points, strict=True), label=group, **style(index))
            panel.set_ylabel(label)
            panel.set_xlabel("step")
            if log:
                panel.set_yscale("log")
                low, high = panel.get_ylim()
                # Values that differ by rounding alone have no scale of their own.
                if high < _NARROW * low:
                    panel.set_ylim(low / _NARROW, high * _NARROW)
                wide = high > _WIDE * low
                if wide:
                    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                panel.yaxis.set_major_formatter("{x:g}")
                panel.yaxis.set_minor_formatter("" if wide else "{x:g}")
        legend_above(figure, labelled(axes.flat[0]))
    return True
