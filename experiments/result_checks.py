"""Measures one cell of a published table again, with the code that measured it first.

Each check takes the settings of its entry in ``configs/check_results.py`` and returns
what is to be compared. It names the stored file that it reads, and raises
FileNotFoundError or ValueError, which name what is missing.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from meta_opt.studies.reproduction.compare import Comparison, by_seeds, by_tolerance
from meta_opt.text_files import read_json
from meta_opt.types import check_keys, check_name, from_config

Settings = Mapping[str, Any]
_HALF_A_DIGIT = 0.005 * 2**30
"""Bytes: what the tables of memory plans round away."""


def meta_test_cell(settings: Settings) -> list[Comparison]:
    """An optimizer on a task of the meta-test, on the stored seeds, at full length.

    Tuned baselines run under their stored settings; the search is not repeated.
    """
    from meta_opt.studies.meta_test import comparison, records
    from meta_opt.studies.meta_test.contenders import MetaTestConfig, contenders
    from meta_opt.studies.meta_test.measuring import inner_run
    from meta_opt.tasks.families import make_task
    from meta_opt.tasks.fingerprint import same_task, task_fingerprint

    check_keys("check", settings, ("suite", "task", "optimizer"))
    suite, name, optimizer = (settings[k] for k in ("suite", "task", "optimizer"))
    config = from_config(MetaTestConfig, {**suite["meta_test"], "tasks": (name,)})
    field = {contender.name: contender for contender in contenders(config)}
    check_name("optimizer", optimizer, field)
    contender = field[optimizer]
    path = Path(suite["results"]) / name / f"{contender.file}.json"
    record = records.read_record(_stored(path))
    task = make_task(name, suite["data_dir"] or None)
    if not same_task(record.fingerprint, task_fingerprint(task)):
        raise ValueError(f"{path}: the task {name!r} or its data changed since")
    run = inner_run(task, contender, config)
    chosen = record.settings if contender.tuned else contender.settings
    steps, seeds = record.setup["num_steps"], record.setup["seeds"]
    (found,) = comparison.measure(run, steps, seeds, chosen)
    stored = record.full
    return [
        by_seeds("validation loss", *_losses(stored, found)),
        by_seeds(
            "test accuracy (%)",
            list(100 * stored.test_accuracy),
            list(100 * found.test_accuracy),
        ),
    ]


def _losses(*runs: Any) -> list[list[float]]:
    return [
        [float("nan") if x is None else x for x in run.validation_loss] for run in runs
    ]


def card_value(settings: Settings) -> list[Comparison]:
    """The validation loss of a task of the meta-test, published without a record."""
    from meta_opt.studies.meta_test import comparison
    from meta_opt.studies.meta_test.contenders import MetaTestConfig, contenders
    from meta_opt.studies.meta_test.measuring import inner_run
    from meta_opt.tasks.families import make_task

    check_keys("check", settings, ("suite", "task", "seeds", "stored", "relative"))
    suite, name = settings["suite"], settings["task"]
    config = from_config(MetaTestConfig, {**suite["meta_test"], "tasks": (name,)})
    field = {contender.name: contender for contender in contenders(config)}
    task = make_task(name, suite["data_dir"] or None)
    found = []
    for optimizer, stored in settings["stored"].items():
        check_name("optimizer", optimizer, field)
        contender = field[optimizer]
        (run,) = comparison.measure(
            inner_run(task, contender, config),
            config.steps(task),
            settings["seeds"],
            contender.settings,
        )
        loss = run.mean_validation_loss
        what = f"validation loss, {optimizer}"
        found.append(by_tolerance(what, stored, loss, relative=settings["relative"]))
    return found


def safeguard_cell(settings: Settings) -> list[Comparison]:
    """The guarded learned optimizer on a task under some conditions."""
    from meta_opt.studies.robustness.measure import RobustnessConfig, measure
    from meta_opt.tasks.families import make_task

    check_keys("check", settings, ("study", "task", "conditions"))
    study, name = settings["study"], settings["task"]
    given = {**study["robustness"], "tasks": (name,)}
    given["conditions"] = settings["conditions"]
    given["num_steps"] = {k: v for k, v in given["num_steps"].items() if k == name}
    config = from_config(RobustnessConfig, given)
    record = read_json(_stored(Path(study["results"]) / "safeguard.json"))
    stored = {
        (x["task"], x["condition"], x["contender"]): x["loss"]
        for x in record["outcomes"]
    }
    task = make_task(name, study["data_dir"] or None)
    # Contender by contender, the guarded learned optimizer first.
    outcomes = itertools.islice(measure(task, config), len(config.chosen()))
    return [
        by_seeds(
            f"validation loss, {x.condition}",
            stored[x.task, x.condition, x.contender],
            x.loss,
        )
        for x in outcomes
    ]


def ablation_row(settings: Settings) -> list[Comparison]:
    """A row of the ablations on one task at full length."""
    from meta_opt.studies.ablations.measure import AblationConfig, measure
    from meta_opt.studies.meta_test.records import baseline_losses
    from meta_opt.tasks.families import make_task

    check_keys("check", settings, ("study", "task", "row", "relative"))
    study, name, row = settings["study"], settings["task"], settings["row"]
    given = {**study["ablations"], "tasks": (name,), "budgets": (1.0,)}
    config = from_config(AblationConfig, given)
    record = read_json(_stored(Path(study["results"]) / "ablations.json"))
    (stored,) = [
        x["loss"]
        for x in record["rows"]
        if (x["name"], x["task"], x["budget"]) == (row, name, 1.0)
    ]
    reference = baseline_losses(study["baseline_results"], [name], study["baseline"])
    rows = measure(make_task(name, study["data_dir"] or None), reference[name], config)
    (measured,) = [x.loss for x in rows if x.name == row]
    tolerance = settings["relative"]
    return [by_tolerance("held-out loss", stored, measured, relative=tolerance)]


def calibration_setting(settings: Settings) -> list[Comparison]:
    """The objective of one setting of a rival on one family."""
    from meta_opt.meta_training.calibration import CalibrationConfig, task_objectives
    from meta_opt.tasks.families import make_task

    names = ("study", "task", "rival", "learning_rate", "weight_decay", "absolute")
    check_keys("check", settings, names)
    study, rival = settings["study"], settings["rival"]
    record = read_json(_stored(Path(study["results"])))
    chosen = {k: settings[k] for k in ("learning_rate", "weight_decay")}
    (stored,) = [
        x["objective"]
        for x in record["objectives"][settings["task"]][rival]
        if {k: x[k] for k in chosen} == chosen
    ]
    config = dataclasses.replace(
        from_config(CalibrationConfig, study["calibration"]),
        rivals=(rival,),
        learning_rates={rival: (chosen["learning_rate"],)},
        weight_decays={rival: (chosen["weight_decay"],)},
    )
    task = make_task(settings["task"], study["data_dir"] or None)
    (row,) = task_objectives(task, config)[rival]
    tolerance = settings["absolute"]
    return [by_tolerance("objective", stored, row["objective"], absolute=tolerance)]


def meltr_operations(settings: Settings) -> list[Comparison]:
    """Operations of each program of a traced cell."""
    from meta_opt.studies.meltr_throughput.cases import Case
    from meta_opt.studies.meltr_throughput.measure import measure

    check_keys("check", settings, ("file", "relative"))
    record = read_json(_stored(Path(settings["file"])))
    case = from_config(Case, record["case"], settings["file"])
    if case.level != "traced":
        raise ValueError(f"{settings['file']}: level={case.level!r} must be 'traced'")
    found = measure(case, lambda runs, rounds: {})["programs"]
    return [
        by_tolerance(
            f"operations, {name}",
            stored["flops"],
            found[name]["flops"],
            relative=settings["relative"],
        )
        for name, stored in record["programs"].items()
    ]


def plan_bytes(settings: Settings) -> list[Comparison]:
    """Bytes of parameters and optimizer state on each device of a plan.

    They follow from shapes and shardings, which are those of as many CPU devices. The
    table has GiB to two decimals: to half of the last one they must agree.
    """
    from experiments.plan_memory import abstract_training, subject
    from meta_opt.finetuning.planning import abstract_state, device_bytes

    check_keys("check", settings, ("plan", "file", "trainable"))
    plan = {**settings["plan"], "topology": ""}
    record = read_json(_stored(Path(settings["file"])))
    _, rules, *_ = subject(plan)
    found = []
    for row in record["rows"]:
        if row["trainable"] != settings["trainable"]:
            continue
        model, tx, mesh = abstract_training(plan, row["trainable"], row["name"])
        state, _ = abstract_state(model.params, model.frozen, tx, mesh, rules)
        for what, tree in (
            ("parameters", state.params),
            ("optimizer", state.opt_state),
        ):
            found.append(
                by_tolerance(
                    f"{what} of a device (bytes), {row['name']}",
                    row[what],
                    device_bytes(tree),
                    absolute=_HALF_A_DIGIT,
                )
            )
    return found


def pruning_operations(settings: Settings) -> list[Comparison]:
    """Tokens of a clip, and operations of a gradient, of models that keep all or some.

    Nothing is trained.
    """
    import tempfile

    from experiments.workloads import read_run
    from meta_opt.studies.token_pruning.measure import TokenPruningConfig, measure

    check_keys("check", settings, ("study", "kept_shares", "relative"))
    run = dict(settings["study"])
    results, _ = run.pop("results"), run.pop("study")
    record = read_json(_stored(Path(results) / "token_pruning.json"))
    stored = {row["name"]: row for row in record["rows"]}
    config = TokenPruningConfig(kept_shares=tuple(settings["kept_shares"]), seeds=())
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(
            read_run(run),
            config,
            lambda calls, rounds: dict.fromkeys(calls, 0.0),
            Path(folder) / "finished.json",
        )
    return [
        by_tolerance(
            f"{what}, {row['name']}",
            stored[row["name"]][what],
            row[what],
            relative=settings["relative"],
        )
        for row in rows
        for what in ("tokens", "flops")
    ]


def tuned_trial(settings: Settings) -> list[Comparison]:
    """The first evaluation of the best trial of a search."""
    from experiments.workloads import read_run
    from meta_opt.finetuning.trial import Trial
    from meta_opt.tuning.injected import injected

    check_keys("check", settings, ("search", "relative"))
    search = settings["search"]
    record = read_json(_stored(Path(search["results"])))
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
    """The first seed of a cell of an optimizer table, under its stored settings."""
    from experiments.table_cells import cells, rerun

    names = ("table", "task", "variant", "optimizer", "relative", "absolute")
    check_keys("check", settings, names)
    table = settings["table"]
    name = ", ".join(settings[k] for k in ("task", "variant", "optimizer"))
    (cell,) = [x for x in cells(table, Path()) if x.name == name]
    record = cell.stored()
    if record is None:
        raise ValueError(f"{cell.path} is not there, or of another configuration")
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
    """A seed of a stage of the framework's table on a task."""
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
        raise ValueError(f"{cell.path} is not there, or of another configuration")
    with tempfile.TemporaryDirectory() as folder:
        again = dataclasses.replace(cell, path=Path(folder) / cell.path.name)
        measure(again, study["tasks"][task])
        found = again.run()
    assert found is not None
    return _test_metrics(stored["test"], found["test"], settings)


def balancing_row(settings: Settings) -> list[Comparison]:
    """A seed of the first variant, which balances nothing, on a task."""
    import tempfile

    from experiments.workloads import read_run
    from meta_opt.studies.balancing.measure import BalancingStudyConfig, measure

    check_keys("check", settings, ("study", "seed", "relative", "absolute"))
    of_run, seed = dict(settings["study"]), settings["seed"]
    results, of_study = of_run.pop("results"), of_run.pop("study")
    record = read_json(_stored(Path(results) / "balancing.json"))
    config = from_config(BalancingStudyConfig, {**of_study, "seeds": (seed,)})
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(read_run(of_run), config, Path(folder) / "finished.json")
        row = next(iter(rows))
    (stored,) = [x for x in record["rows"] if x["name"] == row["name"]]
    seeds = from_config(BalancingStudyConfig, of_study).seeds
    (before,) = [run for run, s in zip(stored["runs"], seeds, strict=True) if s == seed]
    return _test_metrics(before, row["runs"][0], settings)


def killed_run(settings: Settings) -> list[Comparison]:
    """Runs of a kind that are killed and resumed, and what differs at their end."""
    import tempfile

    from absl import logging

    from experiments.fault_trials.cells import cells, open_place

    # Orbax warns of what it does not need to restore a checkpoint's part.
    logging.set_verbosity(logging.ERROR)

    check_keys("check", settings, ("study", "cell"))
    field = {cell.name: cell for cell in cells(settings["study"])}
    check_name("cell", settings["cell"], field)
    cell = field[settings["cell"]]
    stored = cell.stored()
    if stored is None:
        raise ValueError(f"{cell.path} is not there, or of another configuration")
    with tempfile.TemporaryDirectory() as folder, open_place(folder) as place:
        found = cell.measure(place)
    differing = len(stored["differing"]), len(found["differing"])
    return [by_tolerance("parts that differ", *differing)]


def _test_metrics(
    stored: Settings, found: Settings, settings: Settings
) -> list[Comparison]:
    """Loss and accuracy on the test split of two runs with the same seed."""
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
    """Ends a run whose further steps are not compared."""


def _stored(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no stored result {path}; run this in a checkout that has it"
        )
    return path


CHECKS: Mapping[str, Callable[[Settings], list[Comparison]]] = {
    check.__name__: check
    for check in (
        *(meta_test_cell, card_value, safeguard_cell, ablation_row),
        *(calibration_setting, meltr_operations, plan_bytes, pruning_operations),
        *(tuned_trial, table_cell, framework_cell, balancing_row, killed_run),
    )
}
"""By the name that a configuration gives as ``kind``."""
