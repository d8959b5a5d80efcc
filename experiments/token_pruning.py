"""What pruning visual tokens costs in accuracy and saves in time, on animated emoji.

    python -m experiments.token_pruning --config configs/token_pruning.py

Writes ``token_pruning.md`` and ``token_pruning.json`` into ``--config.results``.
Stopped and started again, it goes on after the last run that was finished. These and
compiled programs are kept in ``--workdir``.
"""

import sys
from pathlib import Path

# For configs.common, wherever this is started from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir("runs/token_pruning", "Folder for programs.")


def main() -> None:
    """Parses, measures, reports."""
    from experiments.benchmarks.timing import medians
    from experiments.workloads import read_run
    from meta_opt.studies.token_pruning.measure import TokenPruningConfig, measure
    from meta_opt.studies.token_pruning.report import write_token_pruning
    from meta_opt.types import from_config

    cli.keep_compiled(WORKDIR.value)
    settings = CONFIG.value.to_dict()
    results, study = settings.pop("results"), settings.pop("study")
    config = from_config(TokenPruningConfig, study, "config.study")
    run = read_run(settings)
    rows = measure(
        run,
        config,
        medians,
        Path(WORKDIR.value) / "finished.json",
        lambda name: print(name, flush=True),
    )
    facts = {
        **cli.origin(CONFIG.value.to_dict()),
        "task": f"{run.workload.family} {run.workload.task}",
        "steps": run.loop.num_steps,
        "batch size": run.loop.batch_size,
        "seeds": ", ".join(map(str, config.seeds)),
    }
    print(write_token_pruning(results, rows, facts))
    print(f"written: {results}/token_pruning.md, token_pruning.json")


if __name__ == "__main__":
    cli.run(main)
