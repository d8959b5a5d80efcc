"""Leave-one-style-out selection of controller weights.

    python -m experiments.style_choice --config configs/style_choice.py:shipped

Scores candidates near the shipped weights on every family of meta-training, and writes
``style_choice.md`` and ``style_choice.json`` to ``--config.results``. Finished families
are kept in ``--workdir``; rerunning resumes after the last one.
"""

import functools
import sys
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from meta_opt.compilation_cache import use_compilation_cache
from meta_opt.studies.style_choice.measure import StyleChoiceConfig, measure
from meta_opt.studies.style_choice.report import write_style_choice
from meta_opt.tasks.families import make_task
from meta_opt.types import check_keys, from_config

CONFIG = cli.define_config()
WORKDIR = cli.define_workdir("runs/style_choice", "Folder for finished families.")


def main() -> None:
    """Measures and writes the report."""
    settings = CONFIG.value.to_dict()
    check_keys("config", settings, ("style_choice", "data_dir", "results"))
    config = from_config(StyleChoiceConfig, settings["style_choice"])
    use_compilation_cache()
    make = functools.partial(make_task, data_dir=settings["data_dir"] or None)
    scores = measure(config, make, WORKDIR.value)
    facts = cli.report_facts(
        settings, **{"weights": config.weights, "runs of each": config.seeds}
    )
    print(write_style_choice(settings["results"], config, scores, facts))
    print(f"written: {settings['results']}/style_choice.md, style_choice.json")


if __name__ == "__main__":
    cli.run(main)
