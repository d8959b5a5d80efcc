"""Meta-trains the learned optimizer's controller.

    python experiments/meta_train.py --config configs/meta_train.py:small \
        --workdir runs/meta_train --config.export=runs/meta_train/theta

After an interruption, or after ``budget_seconds``, the same command resumes. ``small``
needs the data of ``make data``; ``smoke`` needs none.

With ``--config.meta.parallel=particles`` the particles of each family are sharded over
the devices. Several processes can work together, as with ``finetune.py``:

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
    """Checks settings, and sets the number of CPU devices before JAX starts."""
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
        raise ValueError(
            f"config.export_from={settings['export_from']!r} must be best or last"
        )
    if settings["export_share"] != 1.0 and not settings["start"]:
        raise ValueError(
            f"config.export_share={settings['export_share']} interpolates from "
            "config.start, which is not set; set it"
        )
    if settings["cpu_devices"]:
        jax.config.update("jax_num_cpu_devices", settings["cpu_devices"])


def main(first: bool) -> None:
    """Meta-trains the controller and exports its weights."""
    settings = CONFIG.value.to_dict()
    use_compilation_cache()
    config = from_config(MetaTrainConfig, settings["meta"])
    data_dir = settings["data_dir"] or None
    tasks = {name: make_task(name, data_dir) for name in config.families}
    validation = meta_validation(settings["validation"], config.controller, data_dir)
    start = None
    if settings["start"]:
        start, shape = load_theta(settings["start"])
        # Training continues with the feature ranges that are stored in the weights.
        ranged = dataclasses.replace(
            config.controller, feature_range=shape.feature_range
        )
        if shape != ranged:
            raise ValueError(
                f"config.start={settings['start']!r} has weights of a controller with "
                f"another configuration, {shape}"
            )
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
