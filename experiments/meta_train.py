"""Meta-trains the learned optimizer's controller.

    python experiments/meta_train.py --config configs/meta_train.py:small \
        --workdir runs/meta_train --config.export=runs/meta_train/theta

After an interruption, or when ``budget_seconds`` are used up, the same command resumes.
``small`` needs what ``make data`` prepares; ``smoke`` needs nothing.

With ``--config.meta.parallel=particles`` the devices share each family's particles.
Several processes then work together, as those of ``finetune.py`` do:

    python experiments/meta_train.py --config configs/meta_train.py:small \
        --workdir /shared/meta_train --config.meta.parallel=particles \
        --coordinator host0:1234 --processes 2 --process 0
"""

import dataclasses
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.common import export_weights, meta_validation
from meta_opt.compilation_cache import use_compilation_cache
from meta_opt.meta_training.config import MetaTrainConfig
from meta_opt.meta_training.outer_loop import meta_train
from meta_opt.optimizers.weights import load_theta
from meta_opt.tasks.families import make_task
from meta_opt.types import check_keys, from_config

CONFIG = cli.define_config()
WORKDIR = cli.define_workdir(None, "Folder for checkpoints and logs.")


def prepare() -> None:
    """Checks the settings, and makes devices before JAX counts them."""
    settings = CONFIG.value.to_dict()
    check_keys(
        "config",
        settings,
        (
            *("meta", "start", "validation", "cpu_devices", "data_dir"),
            *("export", "export_from", "export_share"),
        ),
    )
    if settings["export_from"] not in ("best", "last"):
        raise ValueError(f"no export_from {settings['export_from']!r}: best or last")
    if settings["export_share"] != 1.0 and not settings["start"]:
        raise ValueError("export_share is of the way from start; name a start")
    if settings["cpu_devices"]:
        jax.config.update("jax_num_cpu_devices", settings["cpu_devices"])


def main(first: bool) -> None:
    """Builds, runs, exports."""
    settings = CONFIG.value.to_dict()
    use_compilation_cache()
    config = from_config(MetaTrainConfig, settings["meta"])
    data_dir = settings["data_dir"] or None
    tasks = {name: make_task(name, data_dir) for name in config.families}
    validation = meta_validation(settings["validation"], config.controller, data_dir)
    start = None
    if settings["start"]:
        start, shape = load_theta(settings["start"])
        # Weights are trained under the range of features that they are stored with.
        ranged = dataclasses.replace(
            config.controller, feature_range=shape.feature_range
        )
        if shape != ranged:
            raise ValueError(f"{settings['start']} has another controller: {shape}")
        config = dataclasses.replace(config, controller=shape)
    result = meta_train(
        config, tasks, WORKDIR.value, validation=validation, start=start
    )
    if not first:
        return
    done = "finished" if result.finished else "stopped; rerun to resume"
    print(f"{result.steps} outer steps, {result.seconds:.0f} s this time, {done}")
    if settings["export"] and result.finished:
        theta = result.theta if settings["export_from"] == "best" else result.last
        if start is not None:
            share = settings["export_share"]
            theta = jax.tree.map(lambda a, b: a + share * (b - a), start, theta)
        export_weights(
            settings["export"],
            theta,
            config.controller,
            tasks.values(),
            {"outer_steps": result.steps},
        )


if __name__ == "__main__":
    cli.run(main, processes=True, prepare=prepare)
