"""The report of a stress test: tables, heat maps and wrong answers in one folder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from meta_opt.metrics.intervals import Interval
from meta_opt.reporting.tables import (
    Cell,
    Row,
    Section,
    Table,
    fact_list,
    to_markdown,
    to_text,
    write_report,
)
from meta_opt.studies.stress.conditions import Condition
from meta_opt.studies.stress.figures import plot_corruptions, plot_widths
from meta_opt.studies.stress.predictions import Prediction
from meta_opt.studies.stress.summary import (
    ConditionRow,
    Difference,
    ModelRow,
    Summary,
)
from meta_opt.studies.stress.wrong_answers import picture_reader, write_wrong_answers

R = TypeVar("R", ConditionRow, ModelRow)
NAME = "stress"
_NONE, _AT_CHANCE = "-", "n/a (chance)"
_NOTES = (
    "Brackets are 95% intervals. Accuracy of one seed has Wilson's; all others are of "
    "the bootstrap over examples and, with several seeds, over seeds. With few seeds "
    "they are too narrow.",
    "Macro averages are over the categories that occur, weighted ones by their share "
    "of the labels. An answer in which no category was read is wrong.",
    "Calibration is the expected calibration error over 15 bins, of the answers that "
    "have a category; it is above 0 by chance too.",
    "Differences are paired: of the same examples. p is of McNemar's exact test, over "
    "several seeds combined by Rüger's rule; q is p adjusted for all tests of the "
    "table (Benjamini and Hochberg). It is - where the two do not have the same seeds.",
    "A condition is compared with the same model under none of its changes of pictures "
    "or prompt, or, where it has none of these, with training on all examples with "
    "right labels.",
    "Mean error is over the corruptions with all five severities. mCE is relative to "
    "the baseline's error by corruption, relative mCE to what corruptions add to it "
    "(Hendrycks and Dietterich 2019, arXiv:1903.12261, where AlexNet is the baseline). "
    "Relative mCE does not apply (n/a) where the accuracy of the model or of the "
    "baseline on clean pictures is not above chance, the share of the most frequent "
    "category: there is nothing to lose, and the ratio would read as robustness.",
)
_METRICS = (
    ("accuracy", "accuracy (%)"),
    ("macro_f1", "macro F1 (%)"),
    ("weighted_f1", "weighted F1 (%)"),
    ("weighted_precision", "weighted precision (%)"),
    ("macro_precision", "macro precision (%)"),
    ("macro_recall", "macro recall (%)"),
)
"""Columns of metrics. Weighted recall is left out because it equals accuracy."""


def write_stress_report(
    folder: str | Path,
    summary: Summary,
    predictions: Sequence[Prediction],
    images: str | Path | None = None,
    facts: Mapping[str, str] | None = None,
) -> str:
    """Writes ``stress.md``, ``stress.json``, heat maps and ``wrong_answers.html``.

    The heat maps, ``widths.png`` and ``corruptions.png``, are only written if widths
    were varied or corruptions tested.

    Args:
        folder: created if needed.
        summary: summary of the predictions.
        predictions: summarised predictions, for the page of wrong answers.
        images: folder that image paths are relative to; None shows no images.
        facts: how it was measured, name to value.

    Returns:
        The table of conditions, for a terminal.

    Raises:
        ValueError: an image cannot be read.
    """
    folder = Path(folder)
    write_wrong_answers(
        folder / "wrong_answers.html",
        predictions,
        (lambda prediction: None) if images is None else picture_reader(images),
    )
    widths = plot_widths(folder / "widths.png", summary.conditions)
    corruptions = plot_corruptions(folder / "corruptions.png", summary.conditions)
    conditions = conditions_table(summary)
    rows = summary.conditions
    tested = {row.examples for row in rows}
    examples = f"{min(tested)}" + f" to {max(tested)}" * (len(tested) > 1)
    parts = [
        "# Stress test",
        f"{len({row.model for row in rows})} models, "
        f"{len({row.condition for row in rows})} conditions, {examples} examples each. "
        "[Wrong answers](wrong_answers.html)",
        to_markdown(conditions),
        "## Corruptions" * bool(summary.corruptions),
        to_markdown(corruptions_table(summary)) * bool(summary.corruptions),
        _incomplete(summary),
        "![Accuracy by corruption and severity](corruptions.png)" * corruptions,
        "## Widths" * widths,
        "![Accuracy by width in training and in the test](widths.png)" * widths,
        f"## Against {summary.baseline}" * bool(summary.models),
        to_markdown(models_table(summary)) * bool(summary.models),
        "## How to read this",
        "\n".join(f"- {note}" for note in _NOTES),
        fact_list(facts or {}),
    ]
    values = {"facts": dict(facts or {}), **_to_json(summary)}
    write_report(folder, NAME, parts, values)
    return to_text(conditions)


def conditions_table(summary: Summary) -> Table:
    """Returns the main table: sections are models, rows are conditions."""
    columns = (
        *(label for _, label in _METRICS),
        "calibration (%)",
        "unread (%)",
        "over reference (points)",
        "p",
        "q",
    )

    def cells(row: ConditionRow) -> tuple[Cell, ...]:
        calibration = row.calibration_error
        return (
            *(Cell(_percent(row.metrics[name])) for name, _ in _METRICS),
            Cell(_NONE if calibration is None else f"{100 * calibration:.1f}"),
            Cell(f"{100 * row.unread:.1f}"),
            *_difference(row.over_reference),
        )

    return Table(columns, _by_model(summary.conditions, cells))


def corruptions_table(summary: Summary) -> Table:
    """Returns corruption errors for each model and condition with corruptions."""
    over = f" over {summary.baseline}" if summary.baseline else ""
    rows = tuple(
        Row(
            f"{row.model}, {row.condition.name}",
            "",
            (
                Cell(str(len(row.corruptions))),
                Cell(_percent(row.error)),
                Cell(_percent(row.mce)),
                Cell(_AT_CHANCE if row.at_chance else _percent(row.relative_mce)),
            ),
        )
        for row in summary.corruptions
    )
    columns = (
        "corruptions",
        "mean error (%)",
        f"mCE{over} (%)",
        f"relative mCE{over} (%)",
    )
    return Table(columns, (Section("", rows),))


def models_table(summary: Summary) -> Table:
    """Returns differences to the baseline: sections are models, rows are conditions."""
    columns = (f"accuracy over {summary.baseline} (points)", "p", "q")
    sections = _by_model(summary.models, lambda row: _difference(row.over_baseline))
    return Table(columns, sections)


def _by_model(
    rows: Sequence[R], cells: Callable[[R], tuple[Cell, ...]]
) -> tuple[Section, ...]:
    """Groups rows into one section for each model."""
    return tuple(
        Section(
            model,
            tuple(
                Row(row.condition.name, "", cells(row))
                for row in rows
                if row.model == model
            ),
        )
        for model in dict.fromkeys(row.model for row in rows)
    )


def _incomplete(summary: Summary) -> str:
    left_out = [
        f"{row.model}, {row.condition.name}: {', '.join(row.incomplete)}"
        for row in summary.corruptions
        if row.incomplete
    ]
    if not left_out:
        return ""
    return "Left out, because a severity is missing: " + "; ".join(left_out) + "."


def _percent(value: Interval | None) -> str:
    return _NONE if value is None else _bracketed(value, "")


def _bracketed(value: Interval, sign: str) -> str:
    text = f"{100 * value.mean:{sign}.1f}"
    if value.low is None or value.high is None:
        return text
    return f"{text} [{100 * value.low:{sign}.1f}, {100 * value.high:{sign}.1f}]"


def _difference(value: Difference | None) -> tuple[Cell, Cell, Cell]:
    if value is None:
        return Cell(_NONE), Cell(_NONE), Cell(_NONE)
    return (
        Cell(_bracketed(value.accuracy, "+")),
        Cell(_probability(value.p_value)),
        Cell(_probability(value.q_value)),
    )


def _probability(value: float | None) -> str:
    if value is None:
        return _NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _to_json(value: Any) -> Any:
    """Converts dataclasses to mappings; conditions have non-default settings only."""
    if isinstance(value, Condition):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _to_json(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key: _to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(part) for part in value]
    return value
