"""Target costs of MELTR, next to the measured ones."""

from collections.abc import Sequence

import numpy as np

from meta_opt.reporting.tables import Section, Table, numbers_row
from meta_opt.studies.meltr_throughput.summary import (
    OPERATIONS,
    TIME,
    Fit,
    Measured,
    compiled,
    plain,
)

BARS = {10: 1.10, 3: 1.35}
"""Upper bounds on the cost of a MELTR step, including its share of the meta-steps,
relative to equal weights, by K."""
META_BAR, MEMORY_BAR, ERROR_BAR = 1.7, 1.15, 0.15
"""Upper bounds on the cost of a meta-step relative to a base step, on peak memory
relative to equal weights, and on the relative error of the cost model."""

CHEAPER = {
    "half_batch": "meta-batches of half a batch",
    "same_half_batch": "one meta-batch of half a batch",
    "quarter_batch": "meta-batches of a quarter of a batch",
}
"""Methods with smaller meta-batches, which are compared with the bounds too."""


def bars(cells: Sequence[Measured], found: Fit | None) -> Table | None:
    """Returns the table of bounds and measured values; None without measurements."""
    lines: list[tuple[str, float, list[float]]] = []
    for unit in (OPERATIONS, TIME):
        every = plain(cells, unit)
        for interval, bar in BARS.items():
            label = f"step over equal weights, K={interval}, {unit}"
            lines.append(
                (label, bar, [1 + c.point(interval, unit).overhead for c in every])
            )
        label = f"meta-step over base step, {unit}"
        lines.append((label, META_BAR, [c.meta_ratio(unit) for c in every]))
    same = [c for c in cells if c.case.method == "same_batch"]
    label = f"the same with one batch for both, {OPERATIONS}"
    lines.append((label, META_BAR, [c.meta_ratio() for c in same]))
    for method, cheaper in CHEAPER.items():
        of_method = [c for c in cells if c.case.method == method]
        for interval, bar in BARS.items():
            label = f"K={interval}, {cheaper}, {OPERATIONS}"
            costs = [1 + c.point(interval).overhead for c in of_method]
            lines.append((label, bar, costs))
        label = f"meta-step over base step, {cheaper}, {OPERATIONS}"
        lines.append((label, META_BAR, [c.meta_ratio() for c in of_method]))
    for cell in compiled(cells):
        label = f"peak memory over equal weights, {cell.case.label}"
        lines.append((label, MEMORY_BAR, [cell.memory_ratio]))
    if found is not None and found.held_out:
        errors = [found.model.step_error(p) for p in found.held_out]
        lines.append(("error of the cost model, step, held out", ERROR_BAR, errors))
        errors = [found.model.overhead_error(p) for p in found.held_out]
        lines.append(("error of the cost model, overhead, held out", ERROR_BAR, errors))
    rows = []
    for label, bar, values in lines:
        if values:
            worst = max(values)
            met = "met" if worst <= bar else "missed"
            numbers = [bar, min(values), float(np.median(values)), worst]
            rows.append(numbers_row(f"{label}: {met}", "", numbers, 3))
    if not rows:
        return None
    return Table(("bar", "lowest", "median", "highest"), (Section("", tuple(rows)),))
