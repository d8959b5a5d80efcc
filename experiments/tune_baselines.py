"""Tunes a baseline with Optuna and writes the best settings.

    python -m experiments.tune_baselines --config configs/tune.py:nano_clipart_adamw

The study is kept in ``--workdir``; rerunning resumes it. Several processes may share
the trials, also on several machines with ``--shared`` or ``--storage``. The objective
is the validation loss after the last step.
"""

import sys
from pathlib import Path
from typing import Any

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.sharing import define_storage, study_place
from experiments.workloads import read_run

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir("runs/tune", "Folder for the studies.")
STORAGE = define_storage()


def main() -> None:
    """Searches and writes the results."""
    from meta_opt.compilation_cache import use_compilation_cache
    from meta_opt.finetuning.state import fingerprint
    from meta_opt.finetuning.trial import Report, Trial
    from meta_opt.interruption import Interrupted
    from meta_opt.tuning.injected import injected
    from meta_opt.tuning.results import describe_search, write_results
    from meta_opt.tuning.search import SearchConfig, search
    from meta_opt.tuning.space import read_space
    from meta_opt.types import check_keys, from_config

    config, workdir = CONFIG.value.to_dict(), Path(WORKDIR.value)
    check_keys("config", config, ("base", "search", "space", "name", "results"))
    # Trials pass their settings as arrays, so the step is compiled only once for each
    # warm-up length.
    use_compilation_cache()
    base = read_run(config["base"], "config.base")
    settings = from_config(SearchConfig, config["search"], "config.search")
    space = read_space(config["space"], "config.space")
    trial = Trial(base, injected, test=False)
    start = trial.workload.params, trial.workload.frozen

    def objective(settings: dict[str, Any], report: Report) -> float:
        found = trial(trial.optimizer(settings), report=report)
        return found.evaluations[-1].validation["loss"]

    study = search(
        settings,
        space,
        objective,
        **study_place(STORAGE.value, workdir, config["name"]),
        name=config["name"],
        setup={
            "run": base.settings(),
            "fingerprint": fingerprint(start),
        },
        stop_on=(Interrupted,),
    )
    record = write_results(
        config["results"],
        study,
        {
            "command": cli.command_line(),
            "objective": "validation loss after the last step",
        },
    )
    print(describe_search(record, "validation loss"))
    print(f"  written to {config['results']}")


if __name__ == "__main__":
    cli.run(main)
