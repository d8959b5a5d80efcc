"""Tables of the report on MELTR's throughput."""

from collections.abc import Callable, Sequence
from typing import Any

from meta_opt.reporting.tables import Row, Section, Table, numbers_row
from meta_opt.studies.meltr_throughput.cases import METHODS
from meta_opt.studies.meltr_throughput.cost_model import Point
from meta_opt.studies.meltr_throughput.programs import META, PARTS, STEPS
from meta_opt.studies.meltr_throughput.summary import (
    TIME,
    Measured,
    compiled,
    on_one_device,
    over_devices,
    plain,
)


def losses_table(
    cells: Sequence[Measured], intervals: Sequence[int], unit: str
) -> Table:
    """Returns ratios of costs, with a column for each T.

    Args:
        cells: cells of one model.
        intervals: values of K, the interval of meta-steps.
        unit: unit of the costs, `OPERATIONS` or `TIME`.
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


def time_table(cells: Sequence[Measured], intervals: Sequence[int]) -> Table | None:
    """Columns are timed cells; rows are milliseconds, samples per second, ratios."""
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
    return Table(tuple(c.case.label for c in cells), (Section("", tuple(rows)),))


def loops_table(cells: Sequence[Measured]) -> Table | None:
    """Times of a step in loops with meta-steps, relative to equal weights."""
    rows = []
    for cell in cells:
        loops = cell.record.get("loops", {})
        for k in (key for key in loops if key != "equal"):
            measured = loops[k] / loops["equal"]
            derived = 1 + cell.point(int(k), TIME).overhead
            numbers = [measured, derived, 100 * (derived / measured - 1)]
            rows.append(numbers_row(f"{cell.case.label}, K={k}", "", numbers, 3))
    if not rows:
        return None
    columns = ("measured", "derived from the programs", "difference (%)")
    return Table(columns, (Section("", tuple(rows)),))


def methods_table(cells: Sequence[Measured]) -> Table | None:
    """Costs of a meta-step by hypergradient, and of LoRA and full training."""
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
        found.setdefault(cell.case.label, cell)
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


def memory_table(cells: Sequence[Measured]) -> Table | None:
    """Peak and temporary memory of each program of compiled cells."""
    rows = []
    for cell in compiled(cells):
        programs = cell.record["programs"]

        def mebibytes(key: str, programs: Any = programs) -> list[float | None]:
            return [
                programs[p][key] / 2**20 if p in programs else None
                for p in (*STEPS, *META)
            ]

        peaks = [*mebibytes("peak_bytes"), cell.memory_ratio]
        rows.append(numbers_row(f"{cell.case.label}: peak (MiB)", "", peaks, 2))
        temporary = [*mebibytes("temporary_bytes"), None]
        rows.append(numbers_row("temporary (MiB)", "", temporary, 2))
    if not rows:
        return None
    columns = (*STEPS, *META, "MELTR's peak / equal")
    return Table(columns, (Section("", tuple(rows)),))


def devices_table(cells: Sequence[Measured]) -> Table | None:
    """Operations, collectives and bytes sent, per device."""
    over = over_devices(cells)
    if not over:
        return None
    single = [one for c in over if (one := on_one_device(c, cells)) is not None]
    rows = []
    for cell in dict.fromkeys((*single, *over)):
        for name, parts in PARTS.items():
            numbers = [
                cell.device_flops(*parts) / 1e9,
                cell.messages(*parts),
                cell.sent(*parts) / 2**20,
                cell.peak(*parts) / 2**20,
            ]
            rows.append(numbers_row(f"{cell.case.label}: {name}", "", numbers, 2))
    columns = ("operations (G)", "collectives", "their bytes (MiB)", "peak (MiB)")
    return Table(columns, (Section("", tuple(rows)),))
