"""Tables of the report on MELTR's throughput."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from meta_opt.reporting.tables import Row, Section, Table, numbers_row
from meta_opt.studies.meltr_throughput.cases import METHODS
from meta_opt.studies.meltr_throughput.cost_model import Point
from meta_opt.studies.meltr_throughput.programs import META, STEPS
from meta_opt.studies.meltr_throughput.summary import (
    OPERATIONS,
    TIME,
    Fit,
    Measured,
    plain,
)

BARS = {10: 1.10, 3: 1.35}
"""Highest cost of MELTR's step, meta-steps included, over equal weights' that is
asked for, by K."""
META_BAR, MEMORY_BAR, ERROR_BAR = 1.7, 1.15, 0.15
"""Highest meta-step over a base step, peak memory over equal weights', and error of the
cost model that are asked for."""

CHEAPER = {
    "half_batch": "meta-batches of half a batch",
    "same_half_batch": "one meta-batch of half a batch",
    "quarter_batch": "meta-batches of a quarter of a batch",
}
"""Ways to take meta-steps that are to meet the bars."""


def bars(cells: Sequence[Measured], found: Fit | None) -> Table | None:
    """What was asked for, beside the worst that was measured."""
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
    usual = [c for c in _compiled(cells) if c.case.method == "jvp_shared"]
    label = "peak memory over equal weights"
    lines.append((label, MEMORY_BAR, [c.memory_ratio for c in usual]))
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


def losses_table(
    cells: Sequence[Measured], intervals: Sequence[int], unit: str
) -> Table:
    """A column for each T: ratios of costs.

    Args:
        cells: of one model.
        intervals: K.
        unit: of the costs.
    """
    points = {k: [c.point(k, unit) for c in cells] for k in intervals}
    first = [c.point(1, unit) for c in cells]

    def row(label: str, read: Callable[[Point], float], of: Sequence[Point]) -> Row:
        return numbers_row(label, "", [read(p) for p in of], 3)

    rows = [
        row("equal weights / standard", lambda p: p.equal / p.primary, first),
        row("MELTR's base step / equal weights", lambda p: p.meltr / p.equal, first),
        row("meta-step / MELTR's base step", lambda p: p.meta / p.meltr, first),
        *(
            row(f"MELTR, K={k} / equal weights", lambda p: 1 + p.overhead, points[k])
            for k in intervals
        ),
        *(
            row(
                f"MELTR, K={k} / standard",
                lambda p: (1 + p.overhead) * p.equal / p.primary,
                points[k],
            )
            for k in intervals
        ),
    ]
    columns = tuple(f"T={c.case.num_losses}" for c in cells)
    return Table(columns, (Section("", tuple(rows)),))


def _label(cell: Measured) -> str:
    case = cell.case
    parts = [f"{case.model}, T={case.num_losses}"]
    parts += ["LoRA"] * (case.trainable == "lora")
    parts += [case.method] * (case.method != "jvp_shared")
    parts += [f"{case.devices} devices"] * (case.devices > 1)
    parts += [case.topology] * bool(case.topology)
    return ", ".join(parts)


def time_table(cells: Sequence[Measured], intervals: Sequence[int]) -> Table | None:
    """A column for each timed cell: milliseconds, samples a second, ratios."""
    if not cells:
        return None
    costs = [c.costs(TIME) for c in cells]
    rows = [
        numbers_row(f"{name} (ms)", "", [x.get(name) for x in costs], 1)
        for name in (*STEPS, *META)
    ]
    for name in ("primary", "equal"):
        rates = [1e3 * c.case.batch_size / c.costs(TIME)[name] for c in cells]
        rows.append(numbers_row(f"{name} (samples/s)", "", rates, 1))
    for k in intervals:
        points = [c.point(k, TIME) for c in cells]
        rates = [
            1e3 * c.case.batch_size / (p.equal * (1 + p.overhead))
            for c, p in zip(cells, points, strict=True)
        ]
        rows.append(numbers_row(f"MELTR, K={k} (samples/s)", "", rates, 1))
    for k in intervals:
        points = [c.point(k, TIME) for c in cells]
        ratios = [1 + p.overhead for p in points]
        rows.append(numbers_row(f"MELTR, K={k} / equal weights", "", ratios, 3))
    return Table(tuple(map(_label, cells)), (Section("", tuple(rows)),))


def loops_table(cells: Sequence[Measured]) -> Table | None:
    """Time of a step in loops with their meta-steps, over equal weights'."""
    rows = []
    for cell in cells:
        loops = cell.record.get("loops", {})
        for k in (key for key in loops if key != "equal"):
            measured = loops[k] / loops["equal"]
            derived = 1 + cell.point(int(k), TIME).overhead
            numbers = [measured, derived, 100 * (derived / measured - 1)]
            rows.append(numbers_row(f"{_label(cell)}, K={k}", "", numbers, 3))
    if not rows:
        return None
    columns = ("measured", "derived from the programs", "difference (%)")
    return Table(columns, (Section("", tuple(rows)),))


def methods_table(cells: Sequence[Measured]) -> Table | None:
    """Costs of a meta-step by hypergradient, and of LoRA beside full training."""
    wanted = [
        c
        for c in cells
        if c.case.devices == 1
        and not c.case.topology
        and (c.case.method != "jvp_shared" or c.case.trainable == "lora")
    ]
    alike = {(c.case.model, c.case.num_losses) for c in wanted}
    usual = [c for c in plain(cells) if (c.case.model, c.case.num_losses) in alike]
    found: dict[str, Measured] = {}
    order = list(METHODS)
    for cell in sorted(
        (*usual, *wanted), key=lambda c: (c.case.model, order.index(c.case.method))
    ):
        found.setdefault(_label(cell), cell)
    if not wanted:
        return None
    rows = [
        numbers_row(
            label,
            "",
            [cell.meta_ratio(), *(1 + cell.point(k).overhead for k in (3, 10))],
            3,
        )
        for label, cell in found.items()
    ]
    columns = (
        "meta-step / base step (operations)",
        "K=3 / equal weights",
        "K=10 / equal weights",
    )
    return Table(columns, (Section("", tuple(rows)),))


def _compiled(cells: Sequence[Measured]) -> list[Measured]:
    return [c for c in cells if c.record["programs"]["equal"]["peak_bytes"] is not None]


def memory_table(cells: Sequence[Measured]) -> Table | None:
    """Peak and temporary memory of each program, of what is compiled."""
    rows = []
    for cell in _compiled(cells):
        programs = cell.record["programs"]

        def mebibytes(key: str, programs: Any = programs) -> list[float | None]:
            return [
                programs[p][key] / 2**20 if p in programs else None
                for p in (*STEPS, *META)
            ]

        peaks = [*mebibytes("peak_bytes"), cell.memory_ratio]
        rows.append(numbers_row(f"{_label(cell)}: peak (MiB)", "", peaks, 2))
        temporary = [*mebibytes("temporary_bytes"), None]
        rows.append(numbers_row("temporary (MiB)", "", temporary, 2))
    if not rows:
        return None
    columns = (*STEPS, *META, "MELTR's peak / equal")
    return Table(columns, (Section("", tuple(rows)),))


def divided_cells(cells: Sequence[Measured]) -> list[Measured]:
    """Compiled cells over several devices, and those they compare with."""
    over = [c for c in _compiled(cells) if c.case.devices > 1 or c.case.topology]
    alike = {(c.case.model, c.case.num_losses) for c in over if not c.case.topology}
    single = [
        c for c in plain(_compiled(cells)) if (c.case.model, c.case.num_losses) in alike
    ]
    return [*single, *sorted(over, key=lambda c: (c.case.topology, c.case.devices))]


def sent_bytes(programs: Mapping[str, Any], names: Sequence[str]) -> float:
    """Bytes that collectives of some of a cell's programs give each device."""
    found = sum(programs[n]["collective_bytes"] for n in names if n in programs)
    return float(found)


def devices_table(cells: Sequence[Measured]) -> Table | None:
    """Of each device: operations, messages, bytes."""
    divided = divided_cells(cells)
    if not divided:
        return None
    rows = []
    for cell in divided:
        programs = cell.record["programs"]
        for name, parts in (("equal", ("equal",)), ("MELTR", ("meltr",)), (
            "meta-step", META)):  # fmt: skip
            there = [programs[p] for p in parts if p in programs]
            operations = sum(p["dot_flops"] for p in there) / 1e9
            numbers = [
                operations or None,
                sum(p["collectives"] for p in there),
                sum(p["collective_bytes"] for p in there) / 2**20,
                max(p["peak_bytes"] for p in there) / 2**20,
            ]
            rows.append(numbers_row(f"{_label(cell)}: {name}", "", numbers, 2))
    columns = ("operations (G)", "collectives", "their bytes (MiB)", "peak (MiB)")
    return Table(columns, (Section("", tuple(rows)),))
