"""The report on MELTR's throughput: a summary with figures, tables and a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.reporting.tables import Table, to_markdown, write_report
from meta_opt.studies.meltr_throughput.cases import METHODS
from meta_opt.studies.meltr_throughput.cost_model import HeldOut, Point
from meta_opt.studies.meltr_throughput.figure import plot
from meta_opt.studies.meltr_throughput.programs import META
from meta_opt.studies.meltr_throughput.summary import (
    OPERATIONS,
    TIME,
    Fit,
    Measured,
    fitted,
    plain,
    read_cells,
)
from meta_opt.studies.meltr_throughput.tables import (
    BARS,
    CHEAPER,
    bars,
    devices_table,
    divided_cells,
    loops_table,
    losses_table,
    memory_table,
    methods_table,
    sent_bytes,
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
    text.append(_growth(every))
    for method, cheaper in CHEAPER.items():
        of_method = [c for c in cells if c.case.method == method]
        if of_method:
            each = [
                f"{' to '.join(dict.fromkeys(_overheads(of_method, k)))} at K={k}"
                for k in sorted(BARS)
            ]
            text.append(f"With {cheaper} it is {' and '.join(each)}.")
    text.append(_hypergradients(cells))
    timed = plain(cells, TIME)
    if timed:
        costs = _range([1 + c.point(10, TIME).overhead for c in timed])
        text.append(
            f"In measured time the cost at K=10 is {' to '.join(dict.fromkeys(costs))} "
            f"times equal weights (cells: {len(timed)})."
        )
    divided = [c for c in divided_cells(cells) if not c.case.topology]
    if len(divided) > 1:
        most = divided[-1]
        programs = most.record["programs"]
        sent = sent_bytes(programs, META) / sent_bytes(programs, ("equal",))
        text.append(
            f"Over {most.case.devices} devices a meta-step sends {sent:.2f} times the "
            "bytes of a step with equal weights."
        )
    if found is not None and found.held_out:
        worst = max(found.model.step_error(p) for p in found.held_out)
        text.append(
            "A formula of the model's own cost, T and K predicts the cost of a step in "
            f"cases that it was not fitted to within {100 * worst:.1f}%."
        )
    return " ".join(filter(None, text))


def _growth(cells: Sequence[Measured]) -> str:
    """What more losses change, of each model from its fewest to its most."""
    found = []
    for model in dict.fromkeys(c.case.model for c in cells):
        of_model = sorted(
            (c for c in cells if c.case.model == model),
            key=lambda c: c.case.num_losses,
        )
        first, last = (c.point(10) for c in (of_model[0], of_model[-1]))
        if first is not last and first.num_losses < last.num_losses:
            growth = last.equal / last.primary * first.primary / first.equal
            found.append(
                f"{model}, {first.num_losses} to {last.num_losses} losses: "
                f"{growth:.2f} times, {1 + first.overhead:.2f} to "
                f"{1 + last.overhead:.2f}"
            )
    if not found:
        return ""
    return (
        "With more losses a step with equal weights grows, and MELTR's cost over it at "
        f"K=10 changes little ({'; '.join(found)})."
    )


def _hypergradients(cells: Sequence[Measured]) -> str:
    """Meta-steps by method on full batches, of the model that has the most methods."""
    alone = [c for c in cells if c.case.devices == 1 and c.case.trainable == "all"]
    by_model: dict[tuple[str, int], dict[str, float]] = {}
    for cell in alone:
        case = cell.case
        if not case.topology and METHODS[case.method].batch_divisor == 1:
            costs = by_model.setdefault((case.model, case.num_losses), {})
            costs[case.method] = cell.meta_ratio()
    (model, count), costs = max(by_model.items(), key=lambda x: len(x[1]))
    if len(costs) < 2:
        return ""
    ordered = sorted(costs, key=lambda name: costs[name])
    each = ", ".join(f"{name} {costs[name]:.2f}" for name in ordered)
    return (
        f"By hypergradient a meta-step of {model}, T={count}, costs {each} base steps."
    )


def _overheads(cells: Sequence[Measured], interval: int) -> tuple[str, str]:
    return _range([1 + c.point(interval).overhead for c in cells])


def _range(values: Sequence[float], digits: int = 2) -> tuple[str, str]:
    return f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"


def _losses(cells: Sequence[Measured]) -> str:
    most = cells[-1]
    return f"Losses, in this order: {', '.join(most.record['losses'])}."


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
