"""The cost of a point of accuracy, in each unit, by phase of training."""

import dataclasses
from collections.abc import Mapping

from meta_opt.finetuning.ledger import Ledger
from meta_opt.markdown import markdown_table

_UNITS = ("money", "device_seconds", "flops", "joules", "tokens_in", "tokens_out")


@dataclasses.dataclass(frozen=True)
class PointCost:
    """A phase of training with its cost and its gain in accuracy.

    Attributes:
        name: name of the phase.
        accuracy: accuracy after the phase, in [0, 1].
        points: gain of the phase in percentage points; negative if accuracy fell.
        cost: cost by unit (money, device_seconds, flops, joules, tokens_in,
            tokens_out); None if unknown.
        cost_per_point: cost per percentage point by unit; None if unknown or if there
            is no gain.
    """

    name: str
    accuracy: float
    points: float
    cost: Mapping[str, float | None]
    cost_per_point: Mapping[str, float | None]


def cost_of_accuracy(
    ledger: Ledger, accuracies: Mapping[str, float], start: float
) -> list[PointCost]:
    """Returns the cost of each phase, of all phases, and per point of accuracy.

    Differences within the sampling noise of a small test set are meaningless: report
    confidence intervals of the accuracies too.

    Args:
        ledger: ledger whose entries have the names of the phases; entries of kind
            ``training`` and ``validation`` are counted, test predictions are not.
        accuracies: accuracy after each phase, in [0, 1], in order.
        start: zero-shot accuracy, before the first phase.

    Returns:
        A row for each phase, and a row ``all`` from ``start`` to the last phase.

    Raises:
        ValueError: there are no phases, one has no entries or the name ``all``, or an
            accuracy is outside [0, 1].

    Example:
        >>> from meta_opt.finetuning.ledger import Amounts, Prices
        >>> ledger = Ledger(Prices("USD", device_hour=3.6))
        >>> ledger = ledger.add("phase 1", "training", Amounts(10.0, 1000.0))
        >>> rows = cost_of_accuracy(ledger, {"phase 1": 0.75}, 0.5)
        >>> rows[0].points, rows[0].cost_per_point["money"]
        (25.0, 0.04)
    """
    if not accuracies:
        raise ValueError("no phase of training to report")
    if "all" in accuracies:
        raise ValueError("no phase can be named 'all', which is the sum of all")
    for name, value in {"start": start, **accuracies}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"accuracy {value} of {name!r} must be in [0, 1]")
    rows, before = [], start
    together = Ledger(ledger.prices)
    for name, accuracy in accuracies.items():
        chosen = ledger.select(name)
        part = dataclasses.replace(
            chosen,
            entries=tuple(
                e for e in chosen.entries if e.kind in ("training", "validation")
            ),
        )
        if not part.entries:
            raise ValueError(f"the ledger has no training of {name!r}")
        rows.append(_row(name, accuracy, before, part))
        before = accuracy
        together = dataclasses.replace(
            together, entries=(*together.entries, *part.entries)
        )
    return [*rows, _row("all", before, start, together)]


def _row(name: str, accuracy: float, before: float, ledger: Ledger) -> PointCost:
    # Rounded, so that 0.85 - 0.8 is five points.
    points = round(100 * (accuracy - before), 9)
    amounts = ledger.total()
    cost = {
        unit: ledger.money() if unit == "money" else getattr(amounts, unit)
        for unit in _UNITS
    }
    per_point = {
        unit: value / points if value is not None and points > 0 else None
        for unit, value in cost.items()
    }
    return PointCost(name, accuracy, points, cost, per_point)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(rows: list[PointCost], currency: str = "") -> str:
    """Formats rows as a Markdown table; ``-`` for unknown costs.

    Units that are unknown or 0 in all rows are left out.

    Args:
        rows: rows from `cost_of_accuracy`.
        currency: currency of the prices.
    """
    titles = {
        "money": currency,
        "device_seconds": "device s",
        "flops": "TFLOP",
        "joules": "kJ",
        "tokens_in": "1000 tokens in",
        "tokens_out": "1000 tokens out",
    }
    scales = {"money": 1.0, "device_seconds": 1.0, "flops": 1e12}
    scales |= dict.fromkeys(("joules", "tokens_in", "tokens_out"), 1e3)
    units = [u for u in _UNITS if any(row.cost[u] for row in rows)]
    head = ["phase", "accuracy %", "points"]
    head += [titles[u] for u in units] + [f"{titles[u]} a point" for u in units]
    lines = []
    for row in rows:
        values = [row.cost[u] for u in units], [row.cost_per_point[u] for u in units]
        cells = [row.name, f"{100 * row.accuracy:.1f}", f"{row.points:+.1f}"]
        for part in values:
            cells += [
                "-" if value is None else _number(value / scales[u])
                for u, value in zip(units, part, strict=True)
            ]
        lines.append(cells)
    return markdown_table(head, lines)
