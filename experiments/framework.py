"""Measures what each part of the framework adds to plain fine-tuning on the suite.

    python -m experiments.framework --config configs/framework.py:suite
    python -m experiments.framework --config configs/framework.py:suite --report_only

Rerunning skips cells that were measured with the same configuration. With ``--shared``,
several processes or machines that share the folders of ``--workdir`` and
``--config.results`` may run the same command. The stages that use the parameters after
the last step, and the tuned settings of AdamW, are taken from Table 1
(``experiments.reproduce_tables``).
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.framework_cells import (
    FrameworkCell,
    framework_cells,
    measure_all,
    table1_runs,
)
from experiments.sharing import reporting, shared_work
from meta_opt.types import check_keys

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir("runs/framework", "Folder of the leases of --shared.")
CHOSEN = cli.define_only()
REPORT_ONLY = cli.define_report_only()

_SETTINGS = ("tasks", "weights", "stages", "seeds", "preset", "table1", "results")


def report(
    config: Mapping[str, Any], cells: Mapping[tuple[str, str, int], FrameworkCell]
) -> str:
    """Writes table and figure of the measured cells; returns the Markdown."""
    from meta_opt.studies.framework.report import write_framework
    from meta_opt.studies.framework.stages import PLAIN, read_stages
    from meta_opt.studies.framework.summary import summarise_stages

    stages = read_stages(config["stages"])
    results: dict[str, dict[str, Any]] = {stage.name: {} for stage in stages}
    for stage in stages:
        of_stage = results[stage.name]
        for task in config["tasks"]:
            if stage.part == PLAIN:
                of_stage[task] = table1_runs(config["table1"], task, stage)[1]
                continue
            runs = [cells[stage.name, task, seed].run() for seed in config["seeds"]]
            if found := [run for run in runs if run is not None]:
                of_stage[task] = found
    missing = len({c.path for c in cells.values() if c.stored() is None})
    command, folder = cli.command_line(), config["results"]
    return write_framework(folder, summarise_stages(results), command, missing)


def main() -> None:
    """Measures missing cells and writes the report."""
    from meta_opt.studies.framework.stages import read_stages

    config = CONFIG.value.to_dict()
    check_keys("config", config, _SETTINGS)
    for task in config["tasks"].values():
        task["optimizer"]["weights"] = config["weights"]
    cells = framework_cells(config, read_stages(config["stages"]))
    folder = config["results"]
    if REPORT_ONLY.value:
        print(report(config, cells))
        return
    chosen = CHOSEN(cell.name for cell in cells.values())
    with shared_work(Path(WORKDIR.value)) as leases:
        missing = {
            cell.path: cell
            for cell in cells.values()
            if cell.name in chosen and cell.stored() is None
        }
        measure_all(config["tasks"], list(missing.values()), leases)
        with reporting(leases) as ours:
            if ours:
                print(report(config, cells))
                print(f"written: {folder}/framework.md, framework.json, framework.png")


if __name__ == "__main__":
    cli.run(main)
