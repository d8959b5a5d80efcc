"""What balancing modalities does to a multimodal classifier: OGM-GE, modality dropout.

    python -m experiments.balancing --config configs/balancing.py:clipart_category

Writes ``balancing.md`` and ``balancing.json`` into ``--config.results``. Stopped and
started again, it goes on after the last run that was finished. These and compiled
programs are kept in ``--workdir``.
"""

import sys
from pathlib import Path

# For configs.common, wherever this is started from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir("runs/balancing", "Folder for programs.")


def main() -> None:
    """Parses, measures, reports."""
    from experiments.workloads import read_run
    from meta_opt.studies.balancing.measure import BalancingStudyConfig, measure
    from meta_opt.studies.balancing.report import write_balancing
    from meta_opt.types import from_config

    cli.keep_compiled(WORKDIR.value)
    settings = CONFIG.value.to_dict()
    results, study = settings.pop("results"), settings.pop("study")
    config = from_config(BalancingStudyConfig, study, "config.study")
    base = read_run(settings)
    rows = measure(
        base,
        config,
        Path(WORKDIR.value) / "finished.json",
        lambda name: print(name, flush=True),
    )
    facts = {
        **cli.origin(CONFIG.value.to_dict()),
        "task": base.workload.inputs.task,
        "optimizer": base.optimizer.name,
        "steps": base.loop.num_steps,
        "batch size": base.loop.batch_size,
        "alpha": config.alpha,
        "seeds": ", ".join(map(str, config.seeds)),
    }
    print(write_balancing(results, rows, facts))
    print(f"written: {results}/balancing.md, balancing.json")


if __name__ == "__main__":
    cli.run(main)
