"""The report on MELTR's throughput: a summary, tables and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.reporting.tables import Table, to_markdown, write_report
from meta_opt.studies.meltr_throughput.answer import answer
from meta_opt.studies.meltr_throughput.bars import bars
from meta_opt.studies.meltr_throughput.cost_model import HeldOut, Point
from meta_opt.studies.meltr_throughput.figure import plot_devices, plot_overhead
from meta_opt.studies.meltr_throughput.summary import (
    OPERATIONS,
    TIME,
    Fit,
    Measured,
    fitted,
    over_devices,
    plain,
    read_cells,
)
from meta_opt.studies.meltr_throughput.tables import (
    devices_table,
    loops_table,
    losses_table,
    memory_table,
    methods_table,
    time_table,
)

_NOTES = """\
- *Standard fine-tuning* is the primary loss alone, *equal weights* the mean of the T \
losses. Both train the same model as MELTR, its heads for all T losses included.
- Operations are those of matrix products, recomputation and loops counted, of the \
traced programs; in compiled ones for CPU their sum is checked against the `dot` \
instructions.
- A step of MELTR at K is its base step and a K-th of a meta-step.
- Memory is by the compiler's analysis, of a device, with the optimizer's state \
resident: AdamW's.
- Programs for TPU topologies are compiled with the least effort for their speed \
(`jax_exec_time_optimization_effort=-1`), all alike. Their operations on a device are \
an equal share of those of the trace.
- Virtual CPU devices share the machine's cores. What they show: operations, memory \
and messages of each device. What they cannot show: time, and whether messages hide \
behind computation.
- Data are made up, of the shapes of real ones; reading them is not part of a step."""


def write_throughput(
    folder: str | Path,
    records: Sequence[Mapping[str, Any]],
    *,
    total: int,
    intervals: Sequence[int],
    held_out: HeldOut,
    command: str,
) -> str:
    """Writes ``meltr_throughput.md`` and ``.json``, and figures of the measured cells.

    Args:
        folder: folder of the results.
        records: records of the measured cells.
        total: number of cells of the whole study.
        intervals: values of K in the tables.
        held_out: points held out of the cost model's fit.
        command: command line that makes the report.

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
            parts += [f"### {model}", _losses(of_model), to_markdown(
                losses_table(of_model, intervals, OPERATIONS))]  # fmt: skip
        parts.append("![overhead](meltr_throughput.png)")
        plot_overhead(Path(folder) / "meltr_throughput.png", cells, found, intervals)
    timed = plain(cells, TIME)
    parts += _section("Losses and interval: time", time_table(timed, intervals))
    parts.append(_noise(timed))
    parts += _section("Loops of real steps", loops_table(timed))
    parts += _section("Hypergradients, and what trains", methods_table(cells))
    parts += _section("Memory", memory_table(cells))
    parts += _section("Devices", devices_table(cells))
    over = over_devices(cells)
    if over:
        parts.append("![devices](meltr_throughput_devices.png)")
        plot_devices(Path(folder) / "meltr_throughput_devices.png", over)
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


def _losses(cells: Sequence[Measured]) -> str:
    most = cells[-1]
    return f"Losses, in this order: {', '.join(most.record['losses'])}."


def _noise(cells: Sequence[Measured]) -> str:
    """Estimates the noise of times: with one loss, two programs do the same work."""
    points = [c.point(1, TIME) for c in cells if c.case.num_losses == 1]
    if not points:
        return ""
    worst = max(abs(p.equal / p.primary - 1) for p in points)
    return (
        "At T=1 equal weights and standard fine-tuning are the same work, and their "
        f"times differ by {100 * worst:.0f}%: differences of times below that say "
        "nothing."
    )


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
