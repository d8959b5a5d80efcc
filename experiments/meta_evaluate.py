"""The meta-test: the learned optimizer and untuned rivals against tuned baselines.

    python -m experiments.meta_evaluate --config configs/meta_evaluate.py:test
    python -m experiments.meta_evaluate --config configs/meta_evaluate.py:foreign

The result of each optimizer on each task is stored in ``--config.results``, next to the
report. Rerunning measures only missing results. A report there that has more tasks than
this run is kept, and the new report is written to ``--workdir``. With ``--shared``,
several processes or machines that share the folders may run the same command; each
result is then measured by one of them.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.sharing import reporting, shared_work
from meta_opt.compilation_cache import use_compilation_cache
from meta_opt.leases import Lease, Leases, share
from meta_opt.studies.meta_test import comparison as meta_test
from meta_opt.studies.meta_test import records
from meta_opt.studies.meta_test.contenders import (
    HAND_DESIGNED,
    Contender,
    MetaTestConfig,
    contenders,
)
from meta_opt.studies.meta_test.measuring import measured
from meta_opt.studies.meta_test.report import reported_tasks, write_meta_test
from meta_opt.tasks.families import make_task
from meta_opt.tasks.fingerprint import task_fingerprint
from meta_opt.tasks.task import Task
from meta_opt.tuning.search import SearchConfig
from meta_opt.types import check_keys, from_config

CONFIG = cli.define_config()
WORKDIR = cli.define_workdir("runs/meta_test", "Folder for the studies.")


def measure_all(
    config: MetaTestConfig,
    search: SearchConfig,
    data_dir: str | None,
    results: Path,
    workdir: Path,
    leases: Leases | None = None,
) -> dict[str, dict[str, records.Record]]:
    """Measures missing results, alone or together with other processes.

    Returns:
        All results, by task and name of the contender.
    """
    from tqdm import tqdm

    @functools.lru_cache(maxsize=1)
    def made(name: str) -> tuple[Task, dict[str, Any]]:
        task = make_task(name, data_dir)
        return task, task_fingerprint(task)

    def measure(cell: tuple[str, Contender], lease: Lease | None) -> None:
        name, contender = cell
        bar.set_postfix_str(f"{name}, {contender.name}")
        found[name][contender.name] = measured(
            *made(name), contender, config, search, results, workdir, lease
        )
        bar.update()

    field = contenders(config)
    cells = [(name, contender) for name in config.tasks for contender in field]
    found: dict[str, dict[str, records.Record]] = {name: {} for name in config.tasks}
    with tqdm(total=len(cells), desc="meta-test", unit="result", disable=None) as bar:
        share(cells, lambda cell: f"{cell[0]}, {cell[1].file}", measure, leases)
    # In the order of the contenders, whichever process measured them first.
    return {
        name: {contender.name: by_name[contender.name] for contender in field}
        for name, by_name in found.items()
    }


def report_folder(tasks: Sequence[str], results: Path, workdir: Path) -> Path:
    """Returns the folder of the report, so that no report with more tasks is replaced.

    Args:
        tasks: names of the tasks of the new report.
        results: preferred folder.
        workdir: folder to use if the report in ``results`` has further tasks.
    """
    further = sorted(reported_tasks(results) - set(tasks))
    if not further:
        return results
    print(
        f"{results}/meta_test.md has {len(further)} further tasks "
        f"({', '.join(further)}) and is kept; the report of this run goes to {workdir}"
    )
    return workdir


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
        facts=cli.report_facts(
            dataclasses.asdict(config),
            seeds=config.seeds,
            trials=f"{config.trials_of_core} of each core baseline, "
            f"{config.trials_of_extra} of each extra baseline",
        ),
    )


def main() -> None:
    """Measures missing results and writes the report."""
    workdir = Path(WORKDIR.value)
    use_compilation_cache()
    settings = CONFIG.value.to_dict()
    check_keys("config", settings, ("meta_test", "search", "data_dir", "results"))
    config = from_config(MetaTestConfig, settings["meta_test"])
    search = from_config(SearchConfig, settings["search"])
    results, data_dir = Path(settings["results"]), settings["data_dir"] or None
    with shared_work(workdir) as leases:
        found = measure_all(config, search, data_dir, results, workdir, leases)
        with reporting(leases) as ours:
            if ours:
                folder = report_folder(config.tasks, results, workdir)
                print(report(config, found, folder))
                print(f"written: {folder}/meta_test.md, meta_test.json, meta_test.csv")


if __name__ == "__main__":
    cli.run(main)
