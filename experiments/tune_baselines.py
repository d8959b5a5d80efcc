"""Tunes a baseline by Optuna and writes what it found.

    python -m experiments.tune_baselines --config configs/tune.py:nano_clipart_adamw

The study is kept in ``--workdir``; run again, it goes on. The objective is the
validation loss after the last step.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

# For configs.common, wherever this is started from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CONFIG = config_flags.DEFINE_config_file("config", help_string="file.py:variant")
WORKDIR = flags.DEFINE_string("workdir", "runs/tune", "Folder for the studies.")


def main(argv: Sequence[str]) -> None:
    """Parses, builds, searches, writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("meta_opt").setLevel(logging.WARNING)
    import jax

    from meta_opt.finetuning.interruption import Interrupted
    from meta_opt.finetuning.run import read_run_config
    from meta_opt.finetuning.state import fingerprint
    from meta_opt.finetuning.trial import Report, Trial
    from meta_opt.tuning.injected import injected
    from meta_opt.tuning.results import write_results
    from meta_opt.tuning.search import SearchConfig, search
    from meta_opt.tuning.space import Setting
    from meta_opt.types import from_config
    from meta_opt.workloads.image_text import ImageTextConfig

    config, workdir = CONFIG.value.to_dict(), Path(WORKDIR.value)
    # Trials differ in values only: the step is compiled once for each warm-up length.
    jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    try:
        base = read_run_config(ImageTextConfig, config["base"])
        settings = from_config(SearchConfig, config["search"])
        space = {k: from_config(Setting, v) for k, v in config["space"].items()}
        trial = Trial(base, injected, test=False)
        start = trial.workload.params, trial.workload.frozen

        def objective(settings: dict[str, Any], report: Report) -> float:
            found = trial(trial.optimizer(settings), report=report)
            return found.evaluations[-1].validation["loss"]

        study = search(
            settings,
            space,
            objective,
            storage=workdir / f"{config['name']}.sqlite3",
            name=config["name"],
            setup={
                "run": base.settings(),
                "fingerprint": fingerprint(start),
            },
            stop_on=(Interrupted,),
        )
    except ValueError as error:
        sys.exit(f"tune_baselines: {error}")
    except Interrupted as interrupted:
        print(f"stopped by {interrupted}; the same command resumes it", file=sys.stderr)
        sys.exit(interrupted.exit_code)
    arguments = " ".join(sys.argv[1:])
    record = write_results(
        config["results"],
        study,
        {
            "command": f"python -m experiments.tune_baselines {arguments}",
            "objective": "validation loss after the last step",
        },
    )
    states = [t["state"] for t in record["trials"]]
    counts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
    print(f"{config['name']}: {len(states)} trials ({counts})")
    print(f"  validation loss {record['best']['value']:.4f} with")
    for name, value in record["best"]["params"].items():
        print(f"    {name} = {value:.4g}")
    print(f"  written to {config['results']}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
