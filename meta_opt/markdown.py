"""Markdown tables."""

from collections.abc import Iterable, Sequence


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True
) -> str:
    """Formats rows as a Markdown table.

    Args:
        head: titles of the columns.
        rows: cells of each row.
        numbers: whether all columns but the first are right-aligned.

    >>> print(markdown_table(["", "loss"], [["ours", "1.5"], ["theirs", ""]]))
    | | loss |
    |---|---:|
    | ours | 1.5 |
    | theirs | |
    """
    rule = "|---|" + ("---:|" if numbers else "---|") * (len(head) - 1)
    return "\n".join([_line(head), rule, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
