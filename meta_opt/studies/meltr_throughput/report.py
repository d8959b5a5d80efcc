"""The report on MELTR's throughput: a summary with figures, tables and a plot."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.reporting.curves import RC, labelled, legend_above, style
from meta_opt.reporting.tables import (
    Row,
    Section,
    Table,
    numbers_row,
    to_markdown,
    write_report,
)
from meta_opt.studies.meltr_throughput.cost_model import HeldOut, Point
from meta_opt.studies.meltr_throughput.measure import META, METHODS, STEPS
from meta_opt.studies.meltr_throughput.summary import (
    OPERATIONS,
    TIME,
    Fit,
    Measured,
    fitted,
    plain,
    read_cells,
)
from meta_opt.types import write_atomic

BARS = {10: 1.10, 3: 1.35}
"""Targets by K: highest cost of MELTR's step, meta-steps included, over that of equal
weights."""
META_BAR, MEMORY_BAR, ERROR_BAR = 1.7, 1.15, 0.15
"""Targets: highest cost of a meta-step over a base step, of peak memory over that of
equal weights, and of the cost model's error."""

_NOTES = """\
- *Standard fine-tuning* is the primary loss alone, *equal weights* the mean of the T \
losses. Both train the same model as MELTR, its heads for all T losses included.
- Operations are those of matrix products, recomputation and loops counted, of the \
traced programs; in compiled ones for CPU their sum is checked against the `dot` \
instructions.
- A step of MELTR at K is its base step and a K-th of a meta-step.
- Memory is by the compiler's analysis, of a device, with the optimizer's state \
resident: AdamW's.
- Virtual CPU devices share the machine's cores. What they show: operations, memory \
and messages of each device. What they cannot show: time, and whether messages hide \
behind computation.
- Data are made up, of the shapes of real ones; reading them is no part of a step."""


def write_throughput(
    folder: str | Path,
    records: Sequence[Mapping[str, Any]],
    *,
    total: int,
    intervals: Sequence[int],
    held_out: HeldOut,
    command: str,
) -> str:
    """Writes ``meltr_throughput.md``, ``.json`` and, given several T, ``.png``.

    Args:
        folder: of the results.
        records: of the measured cells.
        total: number of cells of the whole study.
        intervals: K of the tables.
        held_out: points held out of the cost model's fit.
        command: the command that makes it.

    Returns:
        The Markdown.
    """
    cells = read_cells(records)
    found = fitted(cells, intervals, held_out)
    parts = ["# Throughput of MELTR", answer(cells, found), f"`{command}`"]
    if len(cells) < total:
        parts.append(f"**{len(cells)} of {total} cells are measured.**")
    parts += _section("Bars", bars(cells, found))
    every = plain(cells)
    if every:
        parts.append("## Losses and interval: operations")
        for model in dict.fromkeys(c.case.model for c in every):
            of_model = [c for c in every if c.case.model == model]
            of_model.sort(key=lambda c: c.case.num_losses)
            parts += [f"### {model}", _losses(of_model), to_markdown(
                losses_table(of_model, intervals, OPERATIONS))]  # fmt: skip
        parts.append("![overhead](meltr_throughput.png)")
        plot(Path(folder) / "meltr_throughput.png", every, found, intervals)
    timed = plain(cells, TIME)
    parts += _section("Losses and interval: time", time_table(timed, intervals))
    parts.append(_noise(timed))
    parts += _section("Loops of real steps", loops_table(timed))
    parts += _section("Hypergradients, and what trains", methods_table(cells))
    parts += _section("Memory", memory_table(cells))
    parts += _section("Devices", devices_table(cells))
    if found is not None:
        parts += ["## Cost model", _cost_model(found)]
    parts += ["## Notes", _NOTES]
    values = {
        "command": command,
        "points": [p._asdict() for c in every for p in map(c.point, intervals)],
        "coefficients": None if found is None else vars(found.model),
        "environments": [r["environment"] for r in records[:1]],
    }
    write_report(folder, "meltr_throughput", parts, values)
    return "\n\n".join(filter(None, parts))


def _section(title: str, body: Table | str | None) -> list[str]:
    if not body:
        return []
    return [f"## {title}", body if isinstance(body, str) else to_markdown(body)]


def answer(cells: Sequence[Measured], found: Fit | None) -> str:
    """One paragraph: the cost of MELTR as losses, model and devices grow.

    Args:
        cells: measured cells; without any of full training there is no summary.
        found: the cost model.
    """
    every = plain(cells)
    if not every:
        return "Nothing is measured yet."
    low, high = _range([c.point(1).meltr / c.point(1).equal for c in every], 3)
    meta = _range([c.meta_ratio() for c in every])
    text = [
        f"In operations MELTR's base step costs {low} to {high} times a step with "
        f"equal weights, and a meta-step {meta[0]} to {meta[1]} base steps, over "
        f"{len(every)} pairs of model and number of losses."
    ]
    for interval in sorted(BARS):
        costs = _range([1 + c.point(interval).overhead for c in every])
        text.append(
            f"With a meta-step every {interval} steps that is {costs[0]} to {costs[1]} "
            "times equal weights."
        )
    for model in dict.fromkeys(c.case.model for c in every):
        of_model = sorted(
            (c for c in every if c.case.model == model),
            key=lambda c: c.case.num_losses,
        )
        first, last = of_model[0], of_model[-1]
        if first is last:
            continue
        ends = [
            (c.point(10).equal / c.point(10).primary, 1 + c.point(10).overhead)
            for c in (first, last)
        ]
        text.append(
            f"From {first.case.num_losses} to {last.case.num_losses} losses of {model} "
            "a step with equal weights grows to "
            f"{ends[1][0] / ends[0][0]:.2f} times, and MELTR's cost over it at K=10 "
            f"goes from {ends[0][1]:.2f} to {ends[1][1]:.2f}."
        )
    timed = plain(cells, TIME)
    if timed:
        costs = _range([1 + c.point(10, TIME).overhead for c in timed])
        text.append(
            f"In measured time the cost at K=10 is {' to '.join(dict.fromkeys(costs))} "
            f"times equal weights (cells: {len(timed)})."
        )
    divided = _divided(cells)
    if len(divided) > 1:
        most = divided[-1]
        programs = most.record["programs"]
        text.append(
            f"Over {most.case.devices} devices a meta-step sends "
            f"{_messages(programs, META) / _messages(programs, ('equal',)):.2f} times "
            "the bytes of a step with equal weights."
        )
    if found is not None and found.held_out:
        worst = max(found.model.step_error(p) for p in found.held_out)
        text.append(
            "A formula of the model's own cost, T and K predicts the cost of a step in "
            f"cases that it was not fitted to within {100 * worst:.1f}%."
        )
    return " ".join(text)


def _range(values: Sequence[float], digits: int = 2) -> tuple[str, str]:
    return f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"


def bars(cells: Sequence[Measured], found: Fit | None) -> Table | None:
    """The targets with the worst measured values."""
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


def _losses(cells: Sequence[Measured]) -> str:
    most = cells[-1]
    return f"Losses, in this order: {', '.join(most.record['losses'])}."


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


def _noise(cells: Sequence[Measured]) -> str:
    """The error of times: with one loss two of the programs do the same."""
    points = [c.point(1, TIME) for c in cells if c.case.num_losses == 1]
    if not points:
        return ""
    worst = max(abs(p.equal / p.primary - 1) for p in points)
    return (
        "At T=1 equal weights and standard fine-tuning are the same work, and their "
        f"times differ by {100 * worst:.0f}%: differences of times below that say "
        "nothing."
    )


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
    """Costs of a meta-step by hypergradient, and of LoRA next to full training."""
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
    """Peak and temporary memory of each compiled program."""
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


def _divided(cells: Sequence[Measured]) -> list[Measured]:
    """Compiled cells on several devices, and the cells that they compare with."""
    over = [c for c in _compiled(cells) if c.case.devices > 1 or c.case.topology]
    alike = {(c.case.model, c.case.num_losses) for c in over if not c.case.topology}
    single = [
        c for c in plain(_compiled(cells)) if (c.case.model, c.case.num_losses) in alike
    ]
    return [*single, *sorted(over, key=lambda c: (c.case.topology, c.case.devices))]


def _messages(programs: Mapping[str, Any], names: Sequence[str]) -> float:
    found = sum(programs[n]["collective_bytes"] for n in names if n in programs)
    return float(found)


def devices_table(cells: Sequence[Measured]) -> Table | None:
    """Operations, collectives and bytes of each device."""
    divided = _divided(cells)
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


def _cost_model(found: Fit) -> str:
    model = found.model
    lines = [
        "Overhead of MELTR over equal weights, with s1 and sT the operations of a step "
        "on the primary loss alone and with equal weights:",
        f"    ({model.combiner:.4g} + ({model.primary:.3f} s1 + {model.losses:.3f} sT "
        f"+ {model.constant:.4g}) / K) / sT",
    ]

    def report(what: str, points: Sequence[Point], model: Any) -> None:
        if points:
            errors = [
                [100 * read(p) for p in points]
                for read in (model.step_error, model.overhead_error)
            ]
            lines.append(
                f"{what} ({len(points)} points): error of the step's cost "
                f"{np.median(errors[0]):.1f}% in the median and "
                f"{np.max(errors[0]):.1f}% at most, of the overhead alone "
                f"{np.median(errors[1]):.1f}% and {np.max(errors[1]):.1f}%."
            )

    report("Fitted", found.fitted, model)
    report("Held out: another model, T or K", found.held_out, model)
    report(
        "Measured times, predicted by the same coefficients without the two that count "
        "operations, and by the times of standard and equal-weight steps",
        *(found.timed, found.unitless),
    )
    return "\n\n".join(lines)


def plot(
    path: str | Path,
    cells: Sequence[Measured],
    found: Fit | None,
    intervals: Sequence[int],
) -> None:
    """Plots the cost over equal weights by T at K=10, and by K at the largest T.

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
        by_losses.set_xlabel("number of losses T")
        by_losses.set_ylabel("operations of a step / equal weights, K=10")
        by_interval.set_xlabel("interval of meta-steps K; lines: the cost model")
        by_interval.set_ylabel("operations of a step / equal weights")
        by_interval.set_xscale("log")
        by_interval.set_xticks(list(intervals), [str(k) for k in intervals])
        by_interval.minorticks_off()
        legend_above(figure, labelled(by_losses))
        figure.savefig(temporary, format="png", dpi=130)
