"""Ablations of learned weights: the effect of setting parts of them to zero.

    python -m experiments.ablations --config configs/ablations.py:shipped

Writes ``ablations.md`` and ``ablations.json`` to ``--config.results``. Each call
measures everything from scratch.
"""

import dataclasses
import sys
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from meta_opt.compilation_cache import use_compilation_cache
from meta_opt.studies.ablations.measure import AblationConfig, measure
from meta_opt.studies.ablations.report import write_ablations
from meta_opt.studies.meta_test.records import baseline_losses
from meta_opt.tasks.families import make_task
from meta_opt.types import check_keys, from_config

CONFIG = cli.define_config()
_KEYS = ("ablations", "baseline", "baseline_results", "data_dir", "results")


def main() -> None:
    """Measures and writes the report."""
    from tqdm import tqdm

    use_compilation_cache()
    settings = CONFIG.value.to_dict()
    check_keys("config", settings, _KEYS)
    config = from_config(AblationConfig, settings["ablations"])
    references = baseline_losses(
        settings["baseline_results"], config.tasks, settings["baseline"]
    )
    rows = []
    for name in tqdm(config.tasks, desc="ablations", unit="task", disable=None):
        task = make_task(name, settings["data_dir"] or None)
        rows += measure(task, references[name], config)
    table = write_ablations(
        settings["results"],
        [dataclasses.asdict(row) for row in rows],
        cli.report_facts(
            settings,
            weights=config.weights,
            baseline=settings["baseline"],
            seeds=config.seeds,
        ),
    )
    print(table)
    print(f"written: {settings['results']}/ablations.md, ablations.json")


if __name__ == "__main__":
    cli.run(main)
