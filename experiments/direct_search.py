"""Optimises a few direct weights of the controller by CMA-ES.

    python experiments/direct_search.py --config configs/direct_search.py:small \
        --workdir runs/direct_search --config.export=runs/direct_search/theta

Meta-training can start from the exported weights (``--config.start``). Rerunning the
command resumes after the last complete generation. With ``--shared``, several processes
or machines that share the folder may run the same command; each family of a generation
is then evaluated by one of them. ``small`` needs the data of ``make data``; ``smoke``
needs none.
"""

import functools
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.common import export_weights, meta_validation
from experiments.sharing import leases_in, reporting
from meta_opt.compilation_cache import use_compilation_cache
from meta_opt.meta_training.direct_search import DirectSearchConfig, direct_search
from meta_opt.tasks.families import make_task
from meta_opt.types import check_keys, from_config

CONFIG = cli.define_config()
WORKDIR = cli.define_workdir(None, "Folder for scores and logs.")


def main() -> None:
    """Runs the search and exports the weights."""
    settings = CONFIG.value.to_dict()
    check_keys(
        "config",
        settings,
        ("search", "validation", "cpu_devices", "data_dir", "export"),
    )
    if settings["cpu_devices"]:
        jax.config.update("jax_num_cpu_devices", settings["cpu_devices"])
    use_compilation_cache()
    config = from_config(DirectSearchConfig, settings["search"])
    data_dir = settings["data_dir"] or None
    validation = meta_validation(settings["validation"], config.controller, data_dir)
    make = functools.partial(make_task, data_dir=data_dir)
    leases = leases_in(Path(WORKDIR.value))
    result = direct_search(
        config, make, WORKDIR.value, validation=validation, leases=leases
    )
    print(f"{result.steps} generations, {result.seconds:.0f} s this time")
    if settings["export"]:
        with reporting(leases) as ours:
            if ours:
                export_weights(
                    settings["export"],
                    result.theta,
                    config.controller,
                    [make(name) for name in config.families],
                    {"generations": result.steps},
                    config.num_steps,
                    config.budgets,
                )


if __name__ == "__main__":
    cli.run(main)
