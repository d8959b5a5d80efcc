"""The report on leave-one-style-out selection: Markdown and JSON in one folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.reporting.tables import Cell, Row, Section, Table, write_table
from meta_opt.studies.style_choice.choice import (
    Fold,
    Scores,
    leave_one_style_out,
    totals_of,
    transferred,
)
from meta_opt.studies.style_choice.measure import StyleChoiceConfig

_NOTES = """\
- A score is the objective of meta-training: the log of the held-out loss over that of \
AdamW at the best of its rates and, at the full length, twice the difference of their \
error rates, both compressed by a logarithm, better counting a third of worse; a mean \
over budgets. 0 is as good as AdamW, less is better. A column is the mean over the \
families of a style.
- `all` is the mean over all families and, weighted, over the worst fifth of them.
- `left out, chosen by the others` runs each style with the candidate that all other \
styles choose; its `all` is what such a choice is worth on styles that had no part in \
it. The candidates themselves are near weights that were searched on all families."""


def write_style_choice(
    folder: str | Path,
    config: StyleChoiceConfig,
    scores: Scores,
    facts: Mapping[str, Any],
) -> str:
    """Writes ``style_choice.md`` and ``style_choice.json``.

    Args:
        folder: created if needed.
        config: settings.
        scores: result of `meta_opt.studies.style_choice.measure.measure`.
        facts: how the rows were measured, name to value.

    Returns:
        The table, for a terminal.
    """
    folds = leave_one_style_out(scores, config.styles, config.worst_weight)
    rows = [{"family": name, "scores": dict(each)} for name, each in scores.items()]
    rows += [dataclasses.asdict(fold) for fold in folds]
    chosen = [f"- Without {fold.style}: {fold.chosen} is chosen." for fold in folds]
    return write_table(
        folder,
        "style_choice",
        "Choice by leaving one style out",
        style_table(config, scores, folds),
        rows,
        facts,
        "\n".join([_NOTES, *chosen]),
    )


def style_table(
    config: StyleChoiceConfig, scores: Scores, folds: Sequence[Fold]
) -> Table:
    """Rows are candidates; columns are styles, and the total over all families."""
    totals = totals_of(scores, config.families, config.worst_weight)

    def cells(name: str) -> tuple[Cell, ...]:
        means = [np.mean([scores[f][name] for f in s]) for s in config.styles.values()]
        return tuple(Cell(f"{x:+.3f}") for x in (*means, totals[name]))

    over_all = transferred(scores, config.styles, folds, config.worst_weight)
    last = Row(
        "left out, chosen by the others",
        "",
        tuple(Cell(f"{x:+.3f}") for x in (*(f.score for f in folds), over_all)),
    )
    lines = tuple(Row(name, "", cells(name)) for name in totals)
    return Table(
        (*config.styles, "all"),
        (Section("candidates", lines), Section("leave-one-style-out", (last,))),
    )
