"""The report of a comparison: table, figure and page in one folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_opt.reporting.curves import plot_curves
from meta_opt.reporting.page import write_page
from meta_opt.reporting.runs import Run, read_run
from meta_opt.reporting.tables import comparison, to_text
from meta_opt.text_files import read_json, write_text


def write_report(
    folder: str | Path,
    *,
    title: str,
    summary: str,
    runs: Mapping[str, str | Path],
    reference: str,
    before: str | Path,
    facts: Mapping[str, str] | None = None,
) -> str:
    """Writes ``curves.png``, ``index.html`` and ``table.txt``.

    Args:
        folder: output folder, created if needed.
        title: heading.
        summary: one paragraph.
        runs: directories by label, the subject of the comparison first.
        reference: label of the run whose final validation loss is the target.
        before: folder that `meta_opt.studies.examples.before_and_after` wrote.
        facts: facts about how it was measured, besides those in the logs.

    Returns:
        The table as text.

    Raises:
        ValueError: if a run is not finished.
    """
    read = {label: read_run(workdir, label) for label, workdir in runs.items()}
    first = read_run(before, "before")
    examples = read_json(Path(before) / "examples.json")
    return _write(
        Path(folder), title, summary, read, reference, first, examples, facts or {}
    )


def _write(
    folder: Path,
    title: str,
    summary: str,
    read: Mapping[str, Run],
    reference: str,
    before: Run,
    examples: Mapping[str, Any],
    facts: Mapping[str, str],
) -> str:
    runs, pairs = list(read.values()), before.result["pairs"]
    table = comparison(
        [before, *runs],
        read[reference],
        validation=f"validation ({pairs['validation']} pairs)",
        test=f"test ({pairs['test']} pairs)",
    )
    plot_curves(folder / "curves.png", runs, read[reference])
    steps = read[reference].curve("validation/loss")[0]
    one_item = 100 / pairs["test"]
    notes = [
        f"Loss and “steps to” are on validation data, evaluated at {len(steps)} steps "
        "and not interpolated: the first evaluation at or below the last "
        f"that of {reference} counts. Retrieval and zero-shot are on test data, "
        "after the last step.",
        f"One test pair is {one_item:.1f} points: smaller differences are noise, and "
        "each column is a single run.",
        "Training seconds include reading batches, and neither compilation nor "
        "evaluation. Bytes are those of the optimizer's state arrays.",
    ]
    write_page(
        folder / "index.html",
        title=title,
        summary=summary,
        table=table,
        figure=folder / "curves.png",
        examples={
            **examples,
            "caption": f"{len(examples['queries'])} test pairs drawn at random, none "
            f"picked by hand, searched for among all {pairs['test']}. A blue frame or "
            "a tick marks the right answer.",
        },
        facts={**describe(runs, pairs), **facts},
        notes=notes,
    )
    text = to_text(table)
    write_text(folder / "table.txt", text + "\n")
    return text


def describe(runs: Sequence[Run], pairs: Mapping[str, int]) -> dict[str, str]:
    """Returns what the logs say of how runs were made, name to value."""
    first = runs[0]
    config, environment = first.config, first.environment
    loop = config["loop"]
    epochs = loop["num_steps"] * loop["batch_size"] / pairs["train"]
    versions = environment["versions"]
    return {
        "model": f"{config['model']['weights'] or config['model']['size']}, "
        f"{first.result['trainable']:,} parameters trained",
        "data": ", ".join(f"{count:,} {split}" for split, count in pairs.items())
        + " pairs",
        "budget": f"{loop['num_steps']} steps of {loop['batch_size']} pairs "
        f"({epochs:.1f} epochs), the same batches in the same order for all, "
        f"seed {loop['seed']}",
        "machine": f"{environment['device_count']} {environment['device']} device(s), "
        f"{environment['platform']}",
        "versions": ", ".join(
            f"{name} {versions[name]}"
            for name in ("jax", "flax", "optax")
            if versions.get(name)
        )
        + f", Python {environment['python']}",
        "revision": environment["git"] or "not in a checkout",
        **{
            f"{run.label}": f"{_settings(run.config['optimizer'])}; run of "
            f"{run.environment['started']}"
            for run in runs
        },
    }


def _settings(optimizer: Mapping[str, Any]) -> str:
    name = optimizer["name"]
    if name == "learned":
        return f"weights {optimizer['weights']}, no learning rate"
    if name == "hand_designed":
        return "hand-designed rule, no learning rate"
    rate = optimizer["learning_rate"]
    return (
        f"{name}, learning rate {'default' if rate is None else format(rate, '.3g')}, "
        f"weight decay {optimizer['weight_decay']:.3g}, momentum "
        f"{optimizer['momentum']:.3g}, warm-up {optimizer['warmup_fraction']:.0%}, "
        "cosine decay"
    )
