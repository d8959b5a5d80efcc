"""The table of remeasured numbers, for a terminal."""

from collections.abc import Sequence

from meta_opt.studies.reproduction.compare import Comparison

_HEAD = ("cell", "quantity", "stored", "measured", "interval", "rule", "verdict")


def comparison_rows(
    cell: str, found: Sequence[Comparison]
) -> list[tuple[str, str, str, str, str, str, str]]:
    """Returns a row for each quantity: stored, measured, interval, rule, verdict."""
    return [
        (
            cell,
            x.quantity,
            _number(x.stored),
            _number(x.measured),
            f"[{_number(x.low)}, {_number(x.high)}]",
            x.rule,
            "agrees" if x.agrees else "OUTSIDE",
        )
        for x in found
    ]


def failure_row(cell: str, message: str) -> tuple[str, str, str, str, str, str, str]:
    """Returns the row of a cell that could not be measured."""
    return (cell, message, "-", "-", "-", "-", "NOT RUN")


def comparison_table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows of `comparison_rows` and `failure_row` as a table with a header."""
    return aligned([_HEAD, *rows])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Pads the columns of a table to the width of their widest cells.

    >>> print(aligned([("a", "value"), ("long", "1")]))
    a     value
    long  1
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)) for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float) -> str:
    """Formats a number with five significant digits.

    >>> _number(0.123456), _number(1234567.0)
    ('0.12346', '1.2346e+06')
    """
    return f"{value:.5g}"
