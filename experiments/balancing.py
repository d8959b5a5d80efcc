"""Effect of balancing the modalities of a multimodal classifier.

    python -m experiments.balancing --config configs/balancing.py:clipart_category

Writes ``balancing.md`` and ``balancing.json`` to ``--config.results``. Rerunning
resumes after the last finished run; finished ones are kept in ``--workdir``.
"""

import sys
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir("runs/balancing", "Folder for finished runs.")


def main() -> None:
    """Measures and writes the report."""
    from experiments.variants import compare_variants
    from meta_opt.studies.balancing.measure import BalancingStudyConfig, measure
    from meta_opt.studies.balancing.report import write_balancing

    compare_variants(
        "balancing",
        CONFIG.value.to_dict(),
        WORKDIR.value,
        BalancingStudyConfig,
        measure,
        write_balancing,
        lambda run, study: {
            "task": run.workload.inputs.task,
            "optimizer": run.optimizer.name,
            "alpha": study.alpha,
        },
    )


if __name__ == "__main__":
    cli.run(main)
