"""The style of all figures: palette, legends, and PNG files."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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

_RC: dict[Any, Any] = {
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


@contextlib.contextmanager
def png_figure(
    path: str | Path, size: tuple[float, float], dpi: int = 150, layout: Any = None
) -> Iterator[Any]:
    """Yields a Matplotlib figure in this style; writes it if the block succeeds.

    Args:
        path: PNG file, written atomically.
        size: width and height in inches.
        dpi: pixels per inch.
        layout: layout engine; None for ``constrained``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC), write_atomic(path) as temporary:
        figure = Figure(figsize=size, layout=layout or "constrained")
        yield figure
        figure.savefig(temporary, format="png", dpi=dpi)


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
