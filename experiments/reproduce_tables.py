"""Measures the cells of a table and writes the table and figures; ``make tables``.

    python -m experiments.reproduce_tables --config configs/tables.py:table1
    python -m experiments.reproduce_tables --config configs/tables.py:meltr

Rerunning, also after Ctrl-C or a kill, skips cells that were measured with the same
configuration. Searches of the baselines' settings are kept in ``--workdir``. With
``--shared``, several processes or machines that share the folders may run the same
command; each cell is then measured by one of them.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.sharing import reporting, shared_work
from experiments.table_cells import STEPS, Cell, cells, measure
from experiments.worker import start_worker, terminated_on_error
from meta_opt.leases import Lease, Leases, share
from meta_opt.types import check_keys

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir("runs/tables", "Folder for the studies.")
CHOSEN = cli.define_only()
REPORT_ONLY = cli.define_report_only()

_LOOK_SECONDS = 10.0
"""Seconds between updates of the progress bar."""

_SETTINGS = (
    *("tasks", "variants", "optimizers", "seeds", "tuning_seed", "budgets", "search"),
    *("timing_rounds", "timed_weights", "unseen", "workers", "results", "report"),
)


def _measure_cells(
    every: Sequence[Cell], config: dict[str, Any], leases: Leases | None
) -> None:
    """Measures the cells that no other process has measured."""

    def measure_cell(cell: Cell, lease: Lease | None) -> None:
        if cell.stored() is None:
            task, variant = config["tasks"][cell.task], config["variants"][cell.variant]
            measure(cell, task, variant, lease)

    share(every, lambda cell: cell.lease_name(cell.name), measure_cell, leases)


def measure_all(
    config: dict[str, Any], missing: Sequence[Cell], leases: Leases | None = None
) -> None:
    """Measures cells in parallel worker processes, with one progress bar.

    Args:
        config: the whole configuration.
        missing: cells to measure.
        leases: leases of the commands that share the table; None without sharing.
    """
    from tqdm import tqdm

    context = multiprocessing.get_context("spawn")
    workers, cores = min(config["workers"], len(missing)), None
    if workers > 1:
        cores = context.Queue()
        available = sorted(os.sched_getaffinity(0))
        for worker in range(workers):
            cores.put(available[worker % len(available)])
    # With leases, every worker goes through all cells and takes free ones.
    parts = [missing] * workers if leases else [[cell] for cell in missing]
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, start_worker, (cores,)
    )
    # The search marks an interrupted trial, and later repeats its settings.
    with pool, terminated_on_error(pool):
        waiting = {pool.submit(_measure_cells, p, config, leases) for p in parts}
        with tqdm(total=len(missing), desc="cells", unit="cell") as bar:
            while waiting:
                done, waiting = concurrent.futures.wait(
                    waiting, _LOOK_SECONDS, concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    future.result()
                there = sum(cell.stored() is not None for cell in missing)
                bar.update(there - bar.n)


def report(config: dict[str, Any], every: Sequence[Cell]) -> str:
    """Writes table and figures of the measured cells; returns the Markdown."""
    found = [record for c in every if (record := c.stored()) is not None]
    times = {
        (r["task"], r["variant"]): r["milliseconds"]
        for r in found
        if r["optimizer"] == STEPS
    }
    found = [record for record in found if record["optimizer"] != STEPS]
    total = sum(cell.optimizer != STEPS for cell in every)
    if config["report"] == "meltr":
        from meta_opt.studies.meltr.report import write_meltr
        from meta_opt.studies.meltr.summary import summarise

        kinds = {name: task["task"] for name, task in config["tasks"].items()}
        rows = summarise(found, kinds)
        counts = {"total": total, "count": len(found)}
        return write_meltr(
            config["results"], rows, **counts, command=cli.command_line()
        )
    from meta_opt.studies.optimizer_table.report import write_table1
    from meta_opt.studies.optimizer_table.summary import summarise_table

    of_cells, lines, claims = summarise_table(found, times, config["unseen"])
    return write_table1(
        config["results"],
        found,
        *([dataclasses.asdict(x) for x in part] for part in (of_cells, lines, claims)),
        total=total,
        command=cli.command_line(),
    )


def main() -> None:
    """Measures missing cells and writes the report."""
    config = CONFIG.value.to_dict()
    check_keys("config", config, _SETTINGS)
    workdir = Path(WORKDIR.value)
    every = cells(config, workdir)
    if REPORT_ONLY.value:
        print(report(config, every))
        return
    chosen = CHOSEN(cell.name for cell in every)
    try:
        with shared_work(workdir) as leases:
            missing = [c for c in every if c.name in chosen and c.stored() is None]
            if missing:
                measure_all(config, missing, leases)
            with reporting(leases) as ours:
                if ours:
                    print(report(config, every))
    except BrokenProcessPool as error:
        raise ValueError(
            f"{error} The same command resumes; if memory was short, with "
            "--config.workers=1"
        ) from None


if __name__ == "__main__":
    cli.run(main)
