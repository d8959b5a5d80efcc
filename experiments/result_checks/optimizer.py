"""Checks of the optimizer's results: meta-test, ablations, adverse conditions."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

from experiments.result_checks.stored import Settings, stored_file
from meta_opt.studies.reproduction.compare import Comparison, by_seeds, by_tolerance
from meta_opt.text_files import read_json
from meta_opt.types import check_keys, check_name, from_config


def meta_test_cell(settings: Settings) -> list[Comparison]:
    """Remeasures an optimizer on a meta-test task, with stored seeds at full length.

    Tuned baselines have their stored settings; the search is not repeated.
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
    record = records.read_record(stored_file(path))
    task = make_task(name, suite["data_dir"] or None)
    if not same_task(record.fingerprint, task_fingerprint(task)):
        raise ValueError(
            f"{path}: the task {name!r} or its data have changed since it was measured"
        )
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
    """Remeasures a published validation loss of the meta-test that has no record."""
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
    """Remeasures the guarded learned optimizer on a task under some conditions."""
    from meta_opt.studies.robustness.measure import RobustnessConfig, measure
    from meta_opt.tasks.families import make_task

    check_keys("check", settings, ("study", "task", "conditions"))
    study, name = settings["study"], settings["task"]
    given = {**study["robustness"], "tasks": (name,)}
    given["conditions"] = settings["conditions"]
    given["num_steps"] = {k: v for k, v in given["num_steps"].items() if k == name}
    config = from_config(RobustnessConfig, given)
    record = read_json(stored_file(Path(study["results"]) / "safeguard.json"))
    stored = {
        (x["task"], x["condition"], x["contender"]): x["loss"]
        for x in record["outcomes"]
    }
    task = make_task(name, study["data_dir"] or None)
    # Outcomes are ordered by contender; the guarded learned optimizer is the first.
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
    """Remeasures a row of the ablations on one task at full length."""
    from meta_opt.studies.ablations.measure import AblationConfig, measure
    from meta_opt.studies.meta_test.records import baseline_losses
    from meta_opt.tasks.families import make_task

    check_keys("check", settings, ("study", "task", "row", "relative"))
    study, name, row = settings["study"], settings["task"], settings["row"]
    given = {**study["ablations"], "tasks": (name,), "budgets": (1.0,)}
    config = from_config(AblationConfig, given)
    record = read_json(stored_file(Path(study["results"]) / "ablations.json"))
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
    """Remeasures the objective of one setting of a rival on one family."""
    from meta_opt.meta_training.calibration import CalibrationConfig, task_objectives
    from meta_opt.tasks.families import make_task

    names = ("study", "task", "rival", "learning_rate", "weight_decay", "absolute")
    check_keys("check", settings, names)
    study, rival = settings["study"], settings["rival"]
    record = read_json(stored_file(Path(study["results"])))
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


def style_score(settings: Settings) -> list[Comparison]:
    """Remeasures the score of a candidate near the shipped weights on one family."""
    from meta_opt.studies.style_choice.measure import StyleChoiceConfig, score
    from meta_opt.tasks.families import make_task

    check_keys("check", settings, ("study", "family", "candidate", "absolute"))
    study, family, name = (settings[k] for k in ("study", "family", "candidate"))
    record = read_json(stored_file(Path(study["results"]) / "style_choice.json"))
    (stored,) = [x["scores"][name] for x in record["rows"] if x.get("family") == family]
    config = from_config(StyleChoiceConfig, study["style_choice"])
    make = functools.partial(make_task, data_dir=study["data_dir"] or None)
    found = score(config, family, name, make)
    return [by_tolerance("score", stored, found, absolute=settings["absolute"])]
