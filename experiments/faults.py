"""Kills, damages and starves runs, resumes them, and compares with undisturbed ones.

    python -m experiments.faults --config configs/faults.py:smoke
    python -m experiments.faults --config configs/faults.py:full --only=kills/meltr

What is measured is kept in ``config.results`` and not measured again; ``--report``
makes the table of what is there. Faults of file systems need root. ``multimodal``,
``meltr`` and ``table_cell`` need what ``make data`` prepares.
"""

import sys
from pathlib import Path

from absl import flags, logging

# For experiments and configs, from whatever folder this is started.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

CONFIG = cli.define_config("configs/faults.py:full", partial=True)
WORKDIR = cli.define_workdir("runs/faults", "Folder for the runs that are disturbed.")
ONLY = flags.DEFINE_string("only", "", "Measure the cells with this in their names.")
REPORT = flags.DEFINE_bool("report", False, "Measure nothing, report what is there.")


def main() -> None:
    """Measures what is not there, reports."""
    from tqdm import tqdm

    from experiments.fault_trials.cells import cells, open_place
    from experiments.fault_trials.report import write_faults

    # Orbax warns of what it does not need to restore a checkpoint's part.
    logging.set_verbosity(logging.ERROR)
    config = CONFIG.value.to_dict()
    every = cells(config)
    missing = [c for c in every if ONLY.value in c.name and c.stored() is None]
    if missing and not REPORT.value:
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
