"""Measures a contender on a task, or reads its stored record."""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

from meta_opt.leases import EXPIRY_SECONDS, Lease
from meta_opt.studies.meta_test import comparison
from meta_opt.studies.meta_test.contenders import Contender, MetaTestConfig
from meta_opt.studies.meta_test.records import Record, fresh_record, write_record
from meta_opt.tasks.inner_run import InnerRun
from meta_opt.tasks.task import Task
from meta_opt.tuning.on_task import Tuned, tune_on_task
from meta_opt.tuning.search import SearchConfig
from meta_opt.tuning.storage import study_file


def inner_run(task: Task, contender: Contender, config: MetaTestConfig) -> InnerRun:
    """Builds the program of a contender's runs on a task."""
    # Only this copy is changed; records have the fingerprint of the original task.
    given = (
        dataclasses.replace(task, provides_loss=True) if contender.needs_value else task
    )
    return InnerRun(given, contender.make(task), config.seeds_at_once)


def measured(
    task: Task,
    fingerprint: dict[str, Any],
    contender: Contender,
    config: MetaTestConfig,
    search: SearchConfig,
    results: Path,
    workdir: Path,
    lease: Lease | None = None,
) -> Record:
    """Returns a contender's result on a task, measuring it if necessary.

    Args:
        task: the task.
        fingerprint: `task_fingerprint` of the task.
        contender: the optimizer; it is tuned first if it has no fixed settings.
        config: seeds and budgets.
        search: settings of the hyperparameter search; the number of trials is replaced
            by the contender's.
        results: folder of records, with a subfolder for each task. A record with the
            same fingerprint and setup is returned unchanged.
        workdir: folder of the searches, which are resumed.
        lease: lease on this result, if several processes share the meta-test.

    Raises:
        LeaseLostError: another process has taken the work; nothing is written.
    """
    num_steps, path = config.steps(task), results / task.name / f"{contender.file}.json"
    setup = {"num_steps": num_steps, "seeds": list(config.seeds), **contender.setup}
    if contender.tuned:
        # Each search draws its own random trials, so that lucky draws are not shared.
        own = zlib.crc32(f"{task.name}/{contender.name}".encode())
        search = dataclasses.replace(
            search, num_trials=setup.pop("trials"), seed=(search.seed + own) % 4096
        )
        setup["tuning_seeds"] = list(config.tuning_seeds)
        setup["search"] = dataclasses.asdict(search)
        del setup["search"]["progress"]
    else:
        setup["budgets"] = list(config.budgets)
    if record := fresh_record(path, fingerprint, setup):
        return record
    run = inner_run(task, contender, config)
    tuned, settings, budgets = Tuned({}, [], 0.0), contender.settings, config.budgets
    if contender.tuned:
        tuned = tune_on_task(
            run,
            contender.name,
            num_steps,
            search,
            seeds=config.tuning_seeds,
            storage=study_file(
                workdir / task.name / contender.file, shared=lease is not None
            ),
            setup={"task": task.name, "fingerprint": fingerprint},
            expiry_seconds=lease.expiry_seconds if lease else EXPIRY_SECONDS,
        )
        settings, budgets = tuned.settings, (1.0,)
    record = Record(
        task=task.name,
        optimizer=contender.name,
        fingerprint=fingerprint,
        setup=setup,
        settings=tuned.settings,
        trials=tuple(tuned.trials),
        runs=comparison.measure(run, num_steps, config.seeds, settings, budgets),
        tuning_seconds=tuned.seconds,
        compile_seconds=run.compile_seconds,
    )
    if lease is not None:
        lease.check()
    write_record(path, record)
    return record
