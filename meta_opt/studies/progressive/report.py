"""The report on a progressive study: tables with published results, and two plots."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_opt.finetuning.accuracy_cost import markdown
from meta_opt.finetuning.ledger import Amounts
from meta_opt.markdown import markdown_table
from meta_opt.reporting.figure_style import labelled, legend_above, png_figure, style
from meta_opt.reporting.tables import write_report
from meta_opt.studies.progressive.summary import PUBLISHED, WAYS, Arm, Outcome

_WAYS = {"answers": "answers as written", "likelihood": "likeliest of the list"}
_NOTES = """\
- A cell is test accuracy / F1 weighted by class sizes, and below it Wilson's 95% \
interval of the accuracy. Differences between phases within it may be noise.
- *Answers as written* are read leniently; one without a category is wrong. *Likeliest \
of the list* is the class whose right answer is the likeliest, which needs no reading.
- Published figures are of other models and other pictures (products in 30 classes), \
with 180 to test: they say what such a curve looks like, not which optimizer is better.
- Costs are those of a phase's run: compilation and validation too, which outweigh \
the steps of a small model. A prediction's is that of writing its answer.
- One seed. Another is another study: `--config.seed=1` and a folder of its own."""


def write_progressive(
    folder: str | Path,
    arms: Sequence[Arm],
    *,
    count: int,
    settings: Mapping[str, Any],
    command: str,
) -> str:
    """Writes ``progressive.md``, ``.json``, and two figures.

    The figures are ``learning_curve.png`` and ``accuracy_cost.png``.

    Args:
        folder: folder of the study.
        arms: tracks with finished phases.
        count: maximum number of phases of an arm.
        settings: settings of the study: ``width``, ``mode``, ``epochs``,
            ``batch_size``, ``trainable``, ``model``.
        command: command line that makes the report.

    Returns:
        The Markdown.
    """
    parts = ["# Progressive few-shot fine-tuning", f"`{command}`", _about(settings)]
    if not arms:
        parts.append("Nothing is finished yet.")
        write_report(folder, "progressive", parts, {"arms": []})
        return "\n\n".join(parts)
    done = sum(len(arm.outcomes) - 1 for arm in arms)
    due = sum(len(arm.outcomes) - 1 if arm.stopped else count for arm in arms)
    if done < due:
        parts.append(f"**{done} of {due} phases are finished.**")
    width = settings["width"]
    parts += [results_table(arms, count, width), "## Learning curve"]
    parts += ["![learning curve](learning_curve.png)", phases_table(arms)]
    if chosen := decisions_table(arms):
        parts += ["## Phases that were chosen", chosen]
    parts += ["## Answers", answers_table(arms), "## Costs"]
    plot_learning(Path(folder) / "learning_curve.png", arms, width)
    if plot_cost(Path(folder) / "accuracy_cost.png", arms):
        parts.append("![accuracy and cost](accuracy_cost.png)")
    for arm in arms:
        if rows := arm.costs():
            parts += [f"### {arm.name}", markdown(rows, arm.ledger().prices.currency)]
    parts += ["## Notes", _NOTES]
    write_report(folder, "progressive", parts, _values(arms, settings, command))
    return "\n\n".join(filter(None, parts))


def _about(settings: Mapping[str, Any]) -> str:
    each = {
        "continue": "each phase starts from the weights of the last one",
        "cumulative": "each phase starts again, on the examples of all phases so far",
    }
    trains = {
        "all": "all parameters train",
        "lora": "LoRA adapters train",
        "decoder": "all parameters but the image tower's train",
        "layers": "all parameters but the image tower's and the token embeddings train",
    }
    epochs = settings["epochs"]
    return (
        f"{settings['model']}, pictures of {settings['width']} pixels; "
        f"{trains[settings['trainable']]}; {each[settings['mode']]}; "
        f"{epochs} epoch{'s' * (epochs > 1)}, batch size {settings['batch_size']}."
    )


def _decimals(value: float) -> str:
    """Formats a fraction with three decimals, as in the published table.

    >>> _decimals(0.7), _decimals(1.0)
    ('.700', '1.000')
    """
    return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.3f}"


def _pair(accuracy: float, f1: float) -> str:
    return f"{_decimals(accuracy)}/{_decimals(f1)}"


def _cell(outcome: Outcome, way: str) -> str:
    low, high = outcome.interval(way)
    both = _pair(outcome.metric("accuracy", way), outcome.metric("weighted_f1", way))
    return f"{both}<br>{_decimals(low)} to {_decimals(high)}"


def results_table(arms: Sequence[Arm], count: int, width: int) -> str:
    """Returns test accuracy and weighted F1 by phase, like the published table.

    Args:
        arms: tracks with finished phases.
        count: maximum number of phases of an arm.
        width: image width in pixels; published results for it are added, if any.
    """
    rows = []
    for way, arm in itertools.product(WAYS, arms):
        cells = [_cell(outcome, way) for outcome in arm.outcomes]
        cells += ["-"] * (1 + count - len(cells))
        rows.append([f"{arm.name}, {_WAYS[way]}", *cells])
    for name, figures in PUBLISHED.get(width, {}).items():
        cells = ["-" if pair is None else _pair(*pair) for pair in figures]
        cells = [*cells, *["-"] * (1 + count)][: 1 + count]
        if set(cells) != {"-"}:
            rows.append([f"*published, {name}*", *cells])
    head = [f"{width} px", "zero-shot", *(f"phase {i + 1}" for i in range(count))]
    return markdown_table(head, rows)


def phases_table(arms: Sequence[Arm]) -> str:
    """Returns losses, metrics, times, and costs of a prediction of each phase."""
    head = ["track, phase", "train loss", "val. loss", "val. accuracy"]
    head += ["precision", "recall", "F1", "macro precision", "macro recall"]
    head += ["macro F1", "steps s", "run s", "ms a prediction"]
    head += ["tokens in, out a prediction", "1000 predictions"]
    rows = []
    for arm in arms:
        prices = arm.ledger().prices
        for o in arm.outcomes:
            spent = o.ledger.select(kind="training")
            each = o.prediction()
            money = prices.money(each)
            losses = (o.last("train_loss"), o.last("validation_loss"))
            averages = (
                o.metric(f"{average}_{name}")
                for average in ("weighted", "macro")
                for name in ("precision", "recall", "f1")
            )
            rows.append(
                [
                    f"{arm.name}, {o.name}",
                    *("-" if x is None else f"{x:.3f}" for x in losses),
                    _decimals(o.metric("accuracy", split="validation")),
                    *map(_decimals, averages),
                    _seconds(o.record.get("train_seconds")),
                    _seconds(spent.total().seconds if spent.entries else None),
                    "-" if each.seconds is None else f"{1000 * each.seconds:.1f}",
                    _tokens(each),
                    "-" if money is None else f"{prices.currency} {1000 * money:.3g}",
                ]
            )
    return markdown_table(head, rows)


def decisions_table(arms: Sequence[Arm]) -> str:
    """Returns the widths that policies chose, with reasons; "" without policies."""
    rows = []
    for arm in arms:
        for o in arm.outcomes:
            if reason := o.record.get("reason"):
                width = f"{o.record['width']} px"
                rows.append([f"{arm.name}, {o.name}", width, str(reason)])
        if arm.stopped:
            rows.append([f"{arm.name}, phase {len(arm.outcomes)}", "none", arm.stopped])
    return markdown_table(["track, phase", "pictures", "reason"], rows) if rows else ""


def _tokens(each: Amounts) -> str:
    if each.tokens_in is None or each.tokens_out is None:
        return "-"
    return f"{each.tokens_in:,.1f}, {each.tokens_out:,.1f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def answers_table(arms: Sequence[Arm]) -> str:
    """Returns how answers about test images were parsed, in percent."""
    names = ("accuracy", "knowledge_errors", "unlisted", "unparseable", "nearest")
    titles = ["right %", "another category %", "no category %", "unparseable %"]
    head = ["track, phase", *titles, "misspelt %", "well-formed JSON %"]
    rows = [
        [f"{arm.name}, {o.name}"]
        + [f"{100 * o.metric(name):.1f}" for name in (*names, "well_formed")]
        for arm in arms
        for o in arm.outcomes
    ]
    return markdown_table(head, rows)


def plot_learning(path: str | Path, arms: Sequence[Arm], width: int) -> None:
    """Plots test accuracy over phases with intervals.

    There is a panel for each way of predicting a class.

    Args:
        path: the PNG file, written atomically.
        arms: tracks, with one line each.
        width: image width in pixels; the published curve for it is added, if any.
    """
    from matplotlib.ticker import MaxNLocator

    with png_figure(path, (10, 4.2)) as figure:
        panels = figure.subplots(1, len(WAYS), sharey=True)
        last = max(len(arm.outcomes) for arm in arms)
        for axes, way in zip(panels, WAYS, strict=True):
            for index, arm in enumerate(arms):
                # Shifted so that intervals of several tracks do not overlap.
                aside = 0.06 * (index - (len(arms) - 1) / 2)
                x = [o.phase + aside for o in arm.outcomes]
                y = [o.metric("accuracy", way) for o in arm.outcomes]
                ends = [o.interval(way) for o in arm.outcomes]
                # Rounding may put a bound of 0 or 1 on the wrong side of the value.
                errors = [
                    [max(v - low, 0) for v, (low, _) in zip(y, ends, strict=True)],
                    [max(high - v, 0) for v, (_, high) in zip(y, ends, strict=True)],
                ]
                axes.errorbar(
                    x,
                    y,
                    errors,
                    label=arm.name,
                    capsize=3,
                    elinewidth=1,
                    **style(index),
                )
            if (curve := _published(width)) and way == "answers":
                axes.plot(
                    range(len(curve)), curve, color="#999999", lw=1.2, ls=":", zorder=1,
                    label="published, small model",
                )  # fmt: skip
                last = max(last, len(curve))
            axes.set_title(_WAYS[way], fontsize=10)
            axes.set_xlabel("phase (0: zero-shot)")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            # Markers at the edges are not clipped.
            axes.set_ylim(-0.02, 1.02)
        for axes in panels:
            axes.set_xlim(-0.3, last - 0.7)
        panels[0].set_ylabel("test accuracy, 95% interval")
        legend_above(figure, labelled(panels[0]))


def _published(width: int) -> list[float]:
    figures = PUBLISHED.get(width, {}).get("small model", ())
    return [pair[0] for pair in figures if pair is not None]


def plot_cost(path: str | Path, arms: Sequence[Arm]) -> bool:
    """Plots test accuracy over the cumulative cost of training.

    The cost is money if the ledgers have prices, otherwise device seconds.

    Args:
        path: the PNG file, written atomically.
        arms: tracks, with one line each; tracks without measured costs are left out.

    Returns:
        Whether there was anything to plot.
    """
    rows = {arm.name: arm.costs()[:-1] for arm in arms}
    known = [row.cost for of_arm in rows.values() for row in of_arm]
    unit = "money" if all(c["money"] is not None for c in known) else "device_seconds"
    if not known or any(cost[unit] is None for cost in known):
        return False
    currency = arms[0].ledger().prices.currency
    with png_figure(path, (7, 4.4)) as figure:
        axes = figure.subplots()
        for index, arm in enumerate(arms):
            spent = [row.cost[unit] or 0.0 for row in rows[arm.name]]
            if not spent:
                continue
            x = [0.0, *itertools.accumulate(spent)]
            y = [o.metric("accuracy") for o in arm.outcomes]
            axes.plot(x, y, label=arm.name, **style(index))
            for o, at, value in zip(arm.outcomes, x, y, strict=True):
                if o.phase:
                    axes.annotate(
                        str(o.phase), (at, value), (3, 5), textcoords="offset points",
                        fontsize=8, color="#555555",
                    )  # fmt: skip
        axes.set_xlim(left=0)
        # Markers at the bottom are not clipped.
        axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
        units = {"money": currency, "device_seconds": "device seconds"}
        axes.set_xlabel(f"cost of training so far ({units[unit]}); marks are phases")
        axes.set_ylabel("test accuracy, answers as written")
        legend_above(figure, labelled(axes))
    return True


def _values(
    arms: Sequence[Arm], settings: Mapping[str, Any], command: str
) -> dict[str, Any]:
    return {
        "command": command,
        "settings": dict(settings),
        "arms": [
            {
                "name": arm.name,
                "stopped": arm.stopped,
                "phases": [
                    {
                        "name": o.name,
                        "width": o.record.get("width"),
                        "reason": o.record.get("reason", ""),
                        "metrics": o.record["metrics"],
                        "examples": o.record["examples"],
                        "interval": {way: o.interval(way) for way in WAYS},
                        "validation_loss": o.last("validation_loss"),
                        "prediction": o.prediction().known(),
                    }
                    for o in arm.outcomes
                ],
                "ledger": arm.ledger().record(),
            }
            for arm in arms
        ],
    }
