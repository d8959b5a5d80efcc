"""Finds one setting of each untuned rival that is best over the training families.

    python -m experiments.calibrate_baselines --config configs/calibrate.py:families

Each task's result is kept in ``--workdir``; run again, it goes on where it was. What it
prints and writes to ``--config.results`` belongs into
`meta_opt.optimizers.untuned.CALIBRATED`.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

# For configs.common, wherever this is started from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from meta_opt.meta_training.calibration import (
    CalibrationConfig,
    best_settings,
    task_prices,
)
from meta_opt.run_log import describe_environment
from meta_opt.tasks.families import make_task
from meta_opt.tasks.fingerprint import same_task, task_fingerprint
from meta_opt.types import check_keys, from_config, write_atomic

CONFIG = config_flags.DEFINE_config_file("config", help_string="file.py:variant")
WORKDIR = flags.DEFINE_string("workdir", "runs/calibrate", "Folder for the prices.")


def calibrate(
    config: CalibrationConfig, data_dir: str | None, results: Path, workdir: Path
) -> dict[str, dict[str, float]]:
    """Measures what is not there and returns the best setting of each rival."""
    from tqdm import tqdm

    # What the prices depend on, but for the list of families.
    setup = json.loads(json.dumps({**dataclasses.asdict(config), "families": None}))
    prices = {}
    for name in tqdm(config.families, desc="calibrate", unit="task", disable=None):
        task, path = make_task(name, data_dir), workdir / f"{name}.json"
        fingerprint = task_fingerprint(task)
        if path.is_file():
            found = json.loads(path.read_text("utf-8"))
            if found["setup"] != setup or not same_task(
                found["fingerprint"], fingerprint
            ):
                raise ValueError(f"{path} is of other settings or data; remove it")
        else:
            found = {
                "setup": setup,
                "fingerprint": fingerprint,
                "prices": task_prices(task, config),
            }
            _write(path, found)
        prices[name] = found["prices"]
    best = best_settings(prices)
    about = {
        "command": " ".join(
            ["python -m experiments.calibrate_baselines", *sys.argv[1:]]
        ),
        "environment": describe_environment(),
    }
    _write(results, {**about, "setup": setup, "best": best, "prices": prices})
    return best


def _write(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomic(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def main(argv: Sequence[str]) -> None:
    """Parses, measures, writes and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("meta_opt").setLevel(logging.WARNING)
    import jax

    workdir = Path(WORKDIR.value)
    jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    settings = CONFIG.value.to_dict()
    try:
        check_keys("config", settings, ("calibration", "data_dir", "results"))
        config = from_config(CalibrationConfig, settings["calibration"])
        results = Path(settings["results"])
        best = calibrate(config, settings["data_dir"] or None, results, workdir)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"calibrate_baselines: {error}")
    except KeyboardInterrupt:
        print("stopped; the same command resumes it", file=sys.stderr)
        sys.exit(130)
    for name, row in best.items():
        print(
            f'"{name}": Setting({row["learning_rate"]:g}, {row["weight_decay"]:g}),'
            f"  # price {row['price']:+.3f}"
        )
    print(f"written: {results}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
