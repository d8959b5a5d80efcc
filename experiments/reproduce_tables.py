"""Measures a table's cells, and makes table and figures of them; ``make tables``.

    python -m experiments.reproduce_tables --config configs/tables.py:table1
    python -m experiments.reproduce_tables --config configs/tables.py:meltr

What is measured already, under the same configuration, is not measured again. Stopped
by Ctrl-C or killed, the same command goes on; studies of baselines are kept in
``--workdir``.
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

from absl import flags

# For configs.common, wherever this is started from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.table_cells import STEPS, Cell, cells, measure
from experiments.worker import start_worker
from meta_opt.types import check_keys

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir("runs/tables", "Folder for the studies.")
ONLY = flags.DEFINE_string("only", "", "Measure the cells with this in their names.")
REPORT = flags.DEFINE_bool("report", False, "Measure nothing, report what is there.")


_SETTINGS = (
    *("tasks", "variants", "optimizers", "seeds", "tuning_seed", "budgets", "search"),
    *("timing_rounds", "unseen", "workers", "results", "report"),
)


def measure_all(config: dict[str, Any], missing: Sequence[Cell]) -> None:
    """Measures cells side by side, with a bar for all of them."""
    from tqdm import tqdm

    context = multiprocessing.get_context("spawn")
    workers, cores = min(config["workers"], len(missing)), None
    if workers > 1:
        cores = context.Queue()
        available = sorted(os.sched_getaffinity(0))
        for worker in range(workers):
            cores.put(available[worker % len(available)])
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, start_worker, (cores,)
    ) as pool:
        waiting = [
            pool.submit(
                measure,
                cell,
                config["tasks"][cell.task],
                config["variants"][cell.variant],
            )
            for cell in missing
        ]
        try:
            with tqdm(total=len(missing), desc="cells", unit="cell") as bar:
                for future in concurrent.futures.as_completed(waiting):
                    bar.set_postfix_str(future.result())
                    bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # A trial that is cut off so is set aside, and its settings come again.
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def report(config: dict[str, Any], every: Sequence[Cell]) -> str:
    """Makes table and figures of the cells that are there."""
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
        measured = [r for r in found if r["optimizer"] != STEPS]
        rows = summarise(measured, kinds, times)
        counts = {"total": total, "count": len(measured)}
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
    """Measures what is not there, reports."""
    config = CONFIG.value.to_dict()
    check_keys("config", config, _SETTINGS)
    every = cells(config, Path(WORKDIR.value))
    try:
        missing = [c for c in every if ONLY.value in c.name and c.stored() is None]
        if missing and not REPORT.value:
            measure_all(config, missing)
        print(report(config, every))
    except BrokenProcessPool as error:
        raise ValueError(
            f"{error} The same command goes on; if memory was short, with "
            "--config.workers=1"
        ) from None


if __name__ == "__main__":
    cli.run(main)
