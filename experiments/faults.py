"""Injects faults into runs, resumes them, and compares with undisturbed runs.

    python -m experiments.faults --config configs/faults.py:smoke
    python -m experiments.faults --config configs/faults.py:full --only kills/meltr

Results stored in ``config.results`` are reused; ``--report_only`` writes the table of
stored results without measuring. File system faults need root. ``multimodal``,
``meltr`` and ``table_cell`` need the data of ``make data``.
"""

import sys
from pathlib import Path

from absl import logging

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

CONFIG = cli.define_config("configs/faults.py:full", partial=True)
WORKDIR = cli.define_workdir("runs/faults", "Folder for the disturbed runs.")
CHOSEN = cli.define_only()
REPORT_ONLY = cli.define_report_only()


def main() -> None:
    """Runs missing trials and writes the report."""
    from tqdm import tqdm

    from experiments.fault_trials.cells import cells, open_place
    from experiments.fault_trials.report import write_faults

    # Orbax warns about items that are left out of a partial restore.
    logging.set_verbosity(logging.ERROR)
    config = CONFIG.value.to_dict()
    every = cells(config)
    chosen = CHOSEN(c.name for c in every)
    missing = [c for c in every if c.name in chosen and c.stored() is None]
    if missing and not REPORT_ONLY.value:
        with (
            open_place(WORKDIR.value) as place,
            tqdm(missing, desc="faults", unit="cell") as bar,
        ):
            for cell in bar:
                bar.set_postfix_str(cell.name)
                cell.write({"name": cell.name, **cell.measure(place)})
    print(write_faults(config["results"], every, cli.command_line()))


if __name__ == "__main__":
    cli.run(main)
