"""Measures long runs, many checkpoints and large data.

    python -m experiments.load --config configs/load.py:smoke
    python -m experiments.load --config configs/load.py:full --only=steps

Results are kept in ``config.results`` and not measured again; ``--report_only`` only
writes the table of stored results.
"""

import sys
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.load_table import table
from experiments.load_trials import TRIALS
from experiments.stored_results import StoredResult
from experiments.worker import run_in_process
from meta_opt.text_files import write_text
from meta_opt.types import check_keys

CONFIG = cli.define_config("configs/load.py:full")
CHOSEN = cli.define_only("trials")
REPORT_ONLY = cli.define_report_only()


def main() -> None:
    """Measures what is missing and writes the report."""
    config = CONFIG.value.to_dict()
    check_keys("config", config, ("counts", "results"))
    check_keys("config.counts", config["counts"], tuple(TRIALS))
    chosen = CHOSEN(config["counts"])
    folder, found = Path(config["results"]), {}
    for name, count in config["counts"].items():
        stored = StoredResult(folder / f"{name}.json", {"trial": name, "count": count})
        if name in chosen and stored.stored() is None and not REPORT_ONLY.value:
            stored.write(run_in_process(TRIALS[name], count))
        if (record := stored.stored()) is not None:
            found[name] = record
    text = table(found, config["counts"])
    write_text(folder / "load.md", text)
    print(text)


if __name__ == "__main__":
    cli.run(main)
