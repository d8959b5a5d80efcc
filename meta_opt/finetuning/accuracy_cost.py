"""What a point of accuracy cost: from phase to phase of training, in each unit."""

import dataclasses
from collections.abc import Mapping

from meta_opt.finetuning.ledger import Ledger

_UNITS = ("money", "device_seconds", "flops", "joules")


@dataclasses.dataclass(frozen=True)
class PointCost:
    """A phase of training, what it cost and what it gained.

    Attributes:
        name: of the phase.
        accuracy: after it, a fraction of 1.
        points: gained by it, in hundredths; negative where accuracy fell.
        cost: of it, by unit: money, device_seconds, flops, joules; None if unknown.
        cost_per_point: by unit; None if unknown, or if nothing was gained.
    """

    name: str
    accuracy: float
    points: float
    cost: Mapping[str, float | None]
    cost_per_point: Mapping[str, float | None]


def cost_of_accuracy(
    ledger: Ledger, accuracies: Mapping[str, float], start: float
) -> list[PointCost]:
    """Cost of each phase, of all together, and of a point that they gained.

    Gains within the noise of a small test set are costs of noise: give the interval of
    the accuracies with them.

    Args:
        ledger: its entries have the names of the phases; those of kind ``training`` and
            ``validation`` count, predictions on the test set do not.
        accuracies: after each phase, a fraction of 1, in order.
        start: before the first phase, zero-shot.

    Returns:
        A row for each phase, and one, ``all``, from ``start`` to the last.

    Raises:
        ValueError: a phase without entries, an accuracy that is no fraction, no phase,
            or one with the name ``all``.

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
            raise ValueError(f"accuracy {value} of {name!r} is no fraction of 1")
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
    """The rows as a table in Markdown; ``-`` for what is not known or not gained.

    Args:
        rows: of `cost_of_accuracy`.
        currency: of the prices.
    """
    titles = {
        "money": currency,
        "device_seconds": "device s",
        "flops": "TFLOP",
        "joules": "kJ",
    }
    scales = {"money": 1.0, "device_seconds": 1.0, "flops": 1e12, "joules": 1e3}
    units = [u for u in _UNITS if any(row.cost[u] is not None for row in rows)]
    head = ["phase", "accuracy %", "points"]
    head += [titles[u] for u in units] + [f"{titles[u]} a point" for u in units]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        values = [row.cost[u] for u in units], [row.cost_per_point[u] for u in units]
        cells = [row.name, f"{100 * row.accuracy:.1f}", f"{row.points:+.1f}"]
        for part in values:
            cells += [
                "-" if value is None else _number(value / scales[u])
                for u, value in zip(units, part, strict=True)
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
