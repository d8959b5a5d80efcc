"""Ablations of learned weights: what is lost if a part of them is set to zero.

    python -m experiments.ablations --config configs/ablations.py:shipped

Writes ``ablations.md`` and ``ablations.json`` into ``--config.results``. Everything is
measured anew each time; compiled programs are kept in ``--workdir``.
"""

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

# For configs.common, wherever this is started from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from meta_opt.run_log import describe_environment
from meta_opt.studies.ablations.measure import AblationConfig, measure
from meta_opt.studies.ablations.report import write_ablations
from meta_opt.studies.meta_test.records import baseline_losses
from meta_opt.tasks.families import make_task
from meta_opt.types import check_keys, from_config

CONFIG = config_flags.DEFINE_config_file("config", help_string="file.py:variant")
WORKDIR = flags.DEFINE_string("workdir", "runs/ablations", "Folder for programs.")
_KEYS = ("ablations", "baseline", "baseline_results", "data_dir", "results")


def main(argv: Sequence[str]) -> None:
    """Parses, measures, reports."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("meta_opt").setLevel(logging.WARNING)
    import jax
    from tqdm import tqdm

    compiled = Path(WORKDIR.value).absolute() / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    settings = CONFIG.value.to_dict()
    try:
        check_keys("config", settings, _KEYS)
        config = from_config(AblationConfig, settings["ablations"])
        references = baseline_losses(
            settings["baseline_results"], config.tasks, settings["baseline"]
        )
        rows = []
        for name in tqdm(config.tasks, desc="ablations", unit="task", disable=None):
            task = make_task(name, settings["data_dir"] or None)
            rows += measure(task, references[name], config)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"ablations: {error}")
    table = write_ablations(
        settings["results"],
        [dataclasses.asdict(row) for row in rows],
        {
            "command": " ".join(["python -m experiments.ablations", *sys.argv[1:]]),
            "weights": config.weights,
            "baseline": settings["baseline"],
            "seeds": ", ".join(map(str, config.seeds)),
            "revision": describe_environment()["git"],
        },
    )
    print(table)
    print(f"written: {settings['results']}/ablations.md, ablations.json")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
