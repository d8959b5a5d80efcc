"""Comparison of untuned optimizers on one task: a Markdown table and a figure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from meta_opt.markdown import markdown_table
from meta_opt.metrics.intervals import interval
from meta_opt.reporting.figure_style import png_figure
from meta_opt.studies.meta_test.contenders import HAND_DESIGNED
from meta_opt.studies.meta_test.records import Record


def label_of(optimizer: str) -> str:
    """Returns the label of an optimizer for tables and figures.

    >>> label_of("adamw_calibrated"), label_of("dog_default"), label_of("lstm-v3")
    ('adamw, calibrated', 'dog, default', 'learned, lstm-v3')
    """
    rule, _, kind = optimizer.rpartition("_")
    if kind in ("calibrated", "default"):
        return f"{rule.replace('_', ' ')}, {kind}"
    if optimizer == HAND_DESIGNED:
        return "hand-designed rule"
    return f"learned, {optimizer}"


def ranked(records: Mapping[str, Record]) -> list[Record]:
    """Sorts records by mean validation loss, ascending; failed ones are last."""
    return sorted(records.values(), key=lambda r: r.full.mean_validation_loss)


def noise(records: Mapping[str, Record]) -> float:
    """Returns the standard deviation of the validation loss over seeds.

    Returns:
        The root mean square of the standard deviations of all optimizers without failed
        runs; NaN if there are none.
    """
    variances = []
    for record in records.values():
        losses = record.full.validation_loss
        if None not in losses and len(losses) > 1:
            known = [x for x in losses if x is not None]
            mean = sum(known) / len(known)
            variances.append(sum((x - mean) ** 2 for x in known) / (len(known) - 1))
    return math.sqrt(sum(variances) / len(variances)) if variances else math.nan


def table_of(records: Mapping[str, Record]) -> str:
    """Returns a Markdown table of optimizers, the best first.

    Args:
        records: records by optimizer, with the same task, length and seeds.

    Returns:
        A table of validation loss (mean and 95% interval over seeds), test accuracy and
        seconds of a run.
    """
    head = ("optimizer, no tuning", "validation loss", "test accuracy", "seconds a run")
    rows = []
    for record in ranked(records):
        run = record.full
        loss = "failed"
        if not run.failures:
            found = interval([x for x in run.validation_loss if x is not None])
            loss = f"{found.mean:.3f}"
            if found.high is not None:
                loss += f" ± {found.high - found.mean:.3f}"
        accuracy = 100 * float(run.test_accuracy.mean())
        label = label_of(record.optimizer)
        rows.append((label, loss, f"{accuracy:.1f}%", f"{run.seconds:.1f}"))
    return markdown_table(head, rows)


def plot(path: str | Path, records: Mapping[str, Record], title: str) -> None:
    """Plots each seed's validation loss; rows are optimizers, the best at the top.

    Args:
        path: the PNG file, written atomically.
        records: records by optimizer.
        title: title of the figure.
    """
    order = ranked(records)
    with png_figure(path, (7.5, 0.6 + 0.32 * len(order))) as figure:
        axes = figure.subplots()
        for row, record in enumerate(order):
            losses = [x for x in record.full.validation_loss if x is not None]
            ours = label_of(record.optimizer).startswith("learned")
            colour = "#0072B2" if ours else "#666666"
            axes.plot(losses, [row] * len(losses), "o", color=colour, alpha=0.7)
            if losses:
                axes.plot(sum(losses) / len(losses), row, "|", color=colour, ms=14)
        axes.set_yticks(range(len(order)), _labels(order))
        axes.invert_yaxis()
        axes.set_xlabel("validation loss after the last step (one dot a seed)")
        axes.set_title(title, loc="left", fontsize=10)


def _labels(order: Sequence[Record]) -> list[str]:
    return [
        label_of(r.optimizer)
        + (f" ({r.full.failures} failed)" if r.full.failures else "")
        for r in order
    ]
