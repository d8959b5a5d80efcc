"""Finds the setting of each untuned rival that is best over the training families.

    python -m experiments.calibrate_baselines --config configs/calibrate.py:families

Each task's result is kept in ``--workdir``; rerunning resumes. The settings are printed
and written to ``--config.results``; copy them into
`meta_opt.optimizers.untuned.CALIBRATED`.
"""

import dataclasses
import sys
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from meta_opt.compilation_cache import use_compilation_cache
from meta_opt.meta_training.calibration import (
    CalibrationConfig,
    best_settings,
    task_objectives,
)
from meta_opt.provenance import provenance
from meta_opt.tasks.families import make_task
from meta_opt.tasks.fingerprint import same_task, task_fingerprint
from meta_opt.text_files import plain_json, read_json, write_json
from meta_opt.types import check_keys, from_config

CONFIG = cli.define_config()
WORKDIR = cli.define_workdir("runs/calibrate", "Folder for each task's results.")


def calibrate(
    config: CalibrationConfig, data_dir: str | None, results: Path, workdir: Path
) -> dict[str, dict[str, float]]:
    """Measures missing tasks and returns the best setting of each rival."""
    from tqdm import tqdm

    # A task's result does not depend on the list of families.
    setup = plain_json({**dataclasses.asdict(config), "families": None})
    objectives = {}
    for name in tqdm(config.families, desc="calibrate", unit="task", disable=None):
        task, path = make_task(name, data_dir), workdir / f"{name}.json"
        fingerprint = task_fingerprint(task)
        if path.is_file():
            found = read_json(path)
            if found["setup"] != setup or not same_task(
                found["fingerprint"], fingerprint
            ):
                raise ValueError(
                    f"{path} was measured with other settings or data; remove it to "
                    "measure again"
                )
        else:
            found = {
                "setup": setup,
                "fingerprint": fingerprint,
                "objectives": task_objectives(task, config),
            }
            write_json(path, found, indent=1)
        objectives[name] = found["objectives"]
    best = best_settings(objectives)
    about = {
        "command": cli.command_line(),
        **provenance({**setup, "families": list(config.families)}),
    }
    record = {**about, "setup": setup, "best": best, "objectives": objectives}
    write_json(results, record, indent=1)
    return best


def main() -> None:
    """Calibrates the rivals, and writes and prints their settings."""
    use_compilation_cache()
    settings = CONFIG.value.to_dict()
    check_keys("config", settings, ("calibration", "data_dir", "results"))
    config = from_config(CalibrationConfig, settings["calibration"])
    results = Path(settings["results"])
    data_dir = settings["data_dir"] or None
    best = calibrate(config, data_dir, results, Path(WORKDIR.value))
    for name, row in best.items():
        print(
            f'"{name}": Setting({row["learning_rate"]:g}, {row["weight_decay"]:g}),'
            f"  # objective {row['objective']:+.3f}"
        )
    print(f"written: {results}")


if __name__ == "__main__":
    cli.run(main)
