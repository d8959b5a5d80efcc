"""Checks of the fine-tuning results: trials, tables, framework, faults."""

import contextlib
import dataclasses
from pathlib import Path

from experiments.result_checks.stored import Settings, stored_file
from meta_opt.studies.reproduction.compare import Comparison, by_tolerance
from meta_opt.text_files import read_json
from meta_opt.types import check_keys, check_name, from_config


def tuned_trial(settings: Settings) -> list[Comparison]:
    """Remeasures the first evaluation of a search's best trial."""
    from experiments.workloads import read_run
    from meta_opt.finetuning.trial import Trial
    from meta_opt.tuning.injected import injected

    check_keys("check", settings, ("search", "relative"))
    search = settings["search"]
    record = read_json(stored_file(Path(search["results"])))
    (best,) = [x for x in record["trials"] if x["number"] == record["best"]["number"]]
    step, stored = next(iter(best["intermediate"].items()))
    trial = Trial(read_run(search["base"], "config.base"), injected, test=False)
    seen: dict[int, float] = {}

    def report(step: int, value: float) -> None:
        seen[step] = value
        raise _Enough

    with contextlib.suppress(_Enough):
        trial(trial.optimizer(best["params"]), report=report)
    what = f"validation loss after {step} steps"
    measured, tolerance = seen[int(step)], settings["relative"]
    return [by_tolerance(what, stored, measured, relative=tolerance)]


def table_cell(settings: Settings) -> list[Comparison]:
    """Remeasures the first seed of a cell of an optimizer table.

    The optimizer has the cell's stored settings; the search is not repeated.
    """
    from experiments.table_cells import cells, rerun

    names = ("table", "task", "variant", "optimizer", "relative", "absolute")
    check_keys("check", settings, names)
    table = settings["table"]
    name = ", ".join(settings[k] for k in ("task", "variant", "optimizer"))
    (cell,) = [x for x in cells(table, Path()) if x.name == name]
    record = cell.stored()
    if record is None:
        raise ValueError(f"{cell.path} does not exist, or is of another configuration")
    stored = record["runs"][0]
    base, changes = table["tasks"][cell.task], table["variants"][cell.variant]
    found = rerun(cell, base, changes, record["settings"], stored["seed"])
    return [
        by_tolerance(
            "validation loss, one seed",
            stored["epochs"][-1]["validation"]["loss"],
            found["epochs"][-1]["validation"]["loss"],
            relative=settings["relative"],
        ),
        _test_accuracy(stored["test"], found["test"], settings),
    ]


def framework_cell(settings: Settings) -> list[Comparison]:
    """Remeasures one seed of a stage of the framework's table on a task."""
    import tempfile

    from experiments.framework_cells import framework_cells, measure
    from meta_opt.studies.framework.stages import read_stages

    names = ("study", "task", "stage", "seed", "relative", "absolute")
    check_keys("check", settings, names)
    study, task = settings["study"], settings["task"]
    cells = framework_cells(study, read_stages(study["stages"]))
    cell = cells[settings["stage"], task, settings["seed"]]
    stored = cell.run()
    if stored is None:
        raise ValueError(f"{cell.path} does not exist, or is of another configuration")
    with tempfile.TemporaryDirectory() as folder:
        again = dataclasses.replace(cell, path=Path(folder) / cell.path.name)
        measure(again, study["tasks"][task])
        found = again.run()
    assert found is not None
    return _test_metrics(stored["test"], found["test"], settings)


def balancing_row(settings: Settings) -> list[Comparison]:
    """Remeasures one seed of the variant without balancing on a task."""
    import tempfile

    from experiments.workloads import read_run
    from meta_opt.studies.balancing.measure import BalancingStudyConfig, measure

    check_keys("check", settings, ("study", "seed", "relative", "absolute"))
    of_run, seed = dict(settings["study"]), settings["seed"]
    results, of_study = of_run.pop("results"), of_run.pop("study")
    record = read_json(stored_file(Path(results) / "balancing.json"))
    config = from_config(BalancingStudyConfig, {**of_study, "seeds": (seed,)})
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(read_run(of_run), config, Path(folder) / "finished.json")
        row = next(iter(rows))
    (stored,) = [x for x in record["rows"] if x["name"] == row["name"]]
    seeds = from_config(BalancingStudyConfig, of_study).seeds
    (before,) = [run for run, s in zip(stored["runs"], seeds, strict=True) if s == seed]
    return _test_metrics(before, row["runs"][0], settings)


def killed_run(settings: Settings) -> list[Comparison]:
    """Repeats a trial of killed and resumed runs, and counts differing parts."""
    import tempfile

    from absl import logging

    from experiments.fault_trials.cells import cells, open_place

    # Orbax warns about items that are left out of a partial restore.
    logging.set_verbosity(logging.ERROR)

    check_keys("check", settings, ("study", "cell"))
    field = {cell.name: cell for cell in cells(settings["study"])}
    check_name("cell", settings["cell"], field)
    cell = field[settings["cell"]]
    stored = cell.stored()
    if stored is None:
        raise ValueError(f"{cell.path} does not exist, or is of another configuration")
    with tempfile.TemporaryDirectory() as folder, open_place(folder) as place:
        found = cell.measure(place)
    differing = len(stored["differing"]), len(found["differing"])
    return [by_tolerance("parts that differ", *differing)]


def _test_metrics(
    stored: Settings, found: Settings, settings: Settings
) -> list[Comparison]:
    """Compares test loss and accuracy of two runs with the same seed."""
    return [
        by_tolerance(
            "test loss, one seed",
            stored["loss"],
            found["loss"],
            relative=settings["relative"],
        ),
        _test_accuracy(stored, found, settings),
    ]


def _test_accuracy(stored: Settings, found: Settings, settings: Settings) -> Comparison:
    return by_tolerance(
        "test accuracy (%), one seed",
        100 * stored["accuracy"],
        100 * found["accuracy"],
        absolute=settings["absolute"],
    )


class _Enough(Exception):
    """Raised to end a run whose further steps are not compared."""
