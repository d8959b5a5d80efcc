"""Failures under adverse conditions, with and without the safeguard.

    python -m experiments.safeguard --config configs/safeguard.py:robustness

Writes ``safeguard.md`` and ``safeguard.json`` to ``--config.results``. Each call
measures everything from scratch.
"""

import dataclasses
import sys
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from meta_opt.compilation_cache import use_compilation_cache
from meta_opt.studies.robustness.measure import (
    CONTENDERS,
    RobustnessConfig,
    compare,
    measure,
)
from meta_opt.studies.robustness.report import write_robustness_report
from meta_opt.tasks.families import make_task
from meta_opt.types import check_keys, from_config

CONFIG = cli.define_config()


def measure_and_report(
    config: RobustnessConfig, data_dir: str | None, results: Path
) -> str:
    """Measures everything, writes the report and returns its table."""
    from tqdm import tqdm

    outcomes = []
    total = len(config.tasks) * len(CONTENDERS) * len(config.chosen())
    with tqdm(total=total, desc="safeguard", unit="outcome", disable=None) as bar:
        for name in config.tasks:
            bar.set_postfix_str(name)
            for outcome in measure(make_task(name, data_dir), config):
                bar.set_postfix_str(f"{name}, {outcome.contender}, {outcome.condition}")
                outcomes.append(outcome)
                bar.update()
    rows, by_task = compare(outcomes)
    return write_robustness_report(
        results,
        rows=[dataclasses.asdict(row) for row in rows],
        by_task=[dataclasses.asdict(row) for row in by_task],
        outcomes=[dataclasses.asdict(outcome) for outcome in outcomes],
        facts=cli.report_facts(
            dataclasses.asdict(config), weights=config.weights, seeds=config.seeds
        ),
    )


def main() -> None:
    """Measures and writes the report."""
    use_compilation_cache()
    settings = CONFIG.value.to_dict()
    check_keys("config", settings, ("robustness", "data_dir", "results"))
    config = from_config(RobustnessConfig, settings["robustness"])
    results = Path(settings["results"])
    print(measure_and_report(config, settings["data_dir"] or None, results))
    print(f"written: {results}/safeguard.md, safeguard.json")


if __name__ == "__main__":
    cli.run(main)
