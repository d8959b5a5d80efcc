"""Accuracy and speed of pruning visual tokens, on animated emoji.

    python -m experiments.token_pruning --config configs/token_pruning.py

Writes ``token_pruning.md`` and ``token_pruning.json`` to ``--config.results``.
Rerunning resumes after the last finished run; finished ones are kept in ``--workdir``.
"""

import functools
import sys
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir("runs/token_pruning", "Folder for finished runs.")


def main() -> None:
    """Measures and writes the report."""
    from experiments.benchmarks.timing import medians
    from experiments.variants import compare_variants
    from meta_opt.studies.token_pruning.measure import TokenPruningConfig, measure
    from meta_opt.studies.token_pruning.report import write_token_pruning

    compare_variants(
        "token_pruning",
        CONFIG.value.to_dict(),
        WORKDIR.value,
        TokenPruningConfig,
        functools.partial(measure, medians=medians),
        write_token_pruning,
        lambda run, study: {"task": f"{run.workload.family} {run.workload.task}"},
    )


if __name__ == "__main__":
    cli.run(main)
