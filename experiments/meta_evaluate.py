"""The meta-test: the learned optimizer and untuned rivals against tuned baselines.

    python -m experiments.meta_evaluate --config configs/meta_evaluate.py:test
    python -m experiments.meta_evaluate --config configs/meta_evaluate.py:foreign

The result of each optimizer on each task is kept in ``--config.results``, beside the
report. Run again, it goes on where it was and measures only what is not there.
"""

import dataclasses
import sys
import zlib
from pathlib import Path
from typing import Any

# For configs.common, wherever this is started from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from meta_opt.studies.meta_test import comparison as meta_test
from meta_opt.studies.meta_test import records
from meta_opt.studies.meta_test.contenders import (
    HAND_DESIGNED,
    Contender,
    MetaTestConfig,
    contenders,
)
from meta_opt.studies.meta_test.report import write_meta_test
from meta_opt.tasks.families import make_task
from meta_opt.tasks.fingerprint import task_fingerprint
from meta_opt.tasks.inner_run import InnerRun
from meta_opt.tasks.task import Task
from meta_opt.tuning.on_task import Tuned, tune_on_task
from meta_opt.tuning.search import SearchConfig
from meta_opt.types import check_keys, from_config

CONFIG = cli.define_config()
WORKDIR = cli.define_workdir("runs/meta_test", "Folder for the studies.")


def inner_run(task: Task, contender: Contender, config: MetaTestConfig) -> InnerRun:
    """The program of a contender's runs on a task."""
    # Fingerprint and name are those of the task as it is.
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
) -> records.Record:
    """Returns a contender's result on a task: what is there, or measured now."""
    num_steps, path = config.steps(task), results / task.name / f"{contender.file}.json"
    setup = {"num_steps": num_steps, "seeds": list(config.seeds), **contender.setup}
    if contender.tuned:
        # Its own random trials: luck with them should not be the same everywhere.
        own = zlib.crc32(f"{task.name}/{contender.name}".encode())
        search = dataclasses.replace(
            search, num_trials=setup.pop("trials"), seed=(search.seed + own) % 4096
        )
        setup["tuning_seeds"] = list(config.tuning_seeds)
        setup["search"] = dataclasses.asdict(search)
        del setup["search"]["progress"]
    else:
        setup["budgets"] = list(config.budgets)
    if record := records.fresh_record(path, fingerprint, setup):
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
            storage=workdir / task.name / f"{contender.file}.sqlite3",
            setup={"task": task.name, "fingerprint": fingerprint},
        )
        settings, budgets = tuned.settings, (1.0,)
    record = records.Record(
        task=task.name,
        optimizer=contender.name,
        fingerprint=fingerprint,
        setup=setup,
        settings=tuned.settings,
        trials=tuple(tuned.trials),
        runs=meta_test.measure(run, num_steps, config.seeds, settings, budgets),
        tuning_seconds=tuned.seconds,
        compile_seconds=run.compile_seconds,
    )
    records.write_record(path, record)
    return record


def measure_all(
    config: MetaTestConfig,
    search: SearchConfig,
    data_dir: str | None,
    results: Path,
    workdir: Path,
) -> dict[str, dict[str, records.Record]]:
    """Returns all results, by task and contender's name."""
    from tqdm import tqdm

    field, found = contenders(config), {}
    total = len(field) * len(config.tasks)
    with tqdm(total=total, desc="meta-test", unit="result", disable=None) as bar:
        for name in config.tasks:
            bar.set_postfix_str(name)
            task = make_task(name, data_dir)
            fingerprint = task_fingerprint(task)
            found[name] = {}
            for contender in field:
                bar.set_postfix_str(f"{name}, {contender.name}")
                found[name][contender.name] = measured(
                    task, fingerprint, contender, config, search, results, workdir
                )
                bar.update()
    return found


def report(
    config: MetaTestConfig, found: dict[str, dict[str, records.Record]], results: Path
) -> str:
    """Compares, writes the report and returns its summary."""
    field, rows = contenders(config), {}
    for subject in (contender.name for contender in field if not contender.tuned):
        rows[subject] = [
            meta_test.compare(
                by_name[subject],
                {e.name: by_name[e.name] for e in field if e.tuned},
                by_name.get(HAND_DESIGNED),
            )
            for by_name in found.values()
        ]
    finals = [
        meta_test.final(r) for by_name in found.values() for r in by_name.values()
    ]
    return write_meta_test(
        results,
        summaries=[
            dataclasses.asdict(meta_test.summarise(subject, of_subject))
            for subject, of_subject in rows.items()
        ],
        rows={k: [dataclasses.asdict(row) for row in v] for k, v in rows.items()},
        finals=[dataclasses.asdict(row) for row in finals],
        facts={
            **cli.origin(dataclasses.asdict(config)),
            "seeds": ", ".join(map(str, config.seeds)),
            "trials": f"{config.trials_of_core} of each core baseline, "
            f"{config.trials_of_extra} of each extra baseline",
        },
    )


def main() -> None:
    """Parses, measures what is not there, reports."""
    workdir = Path(WORKDIR.value)
    cli.keep_compiled(workdir)
    settings = CONFIG.value.to_dict()
    check_keys("config", settings, ("meta_test", "search", "data_dir", "results"))
    config = from_config(MetaTestConfig, settings["meta_test"])
    search = from_config(SearchConfig, settings["search"])
    results, data_dir = Path(settings["results"]), settings["data_dir"] or None
    found = measure_all(config, search, data_dir, results, workdir)
    print(report(config, found, results))
    print(f"written: {results}/meta_test.md, meta_test.json, meta_test.csv")


if __name__ == "__main__":
    cli.run(main)
