"""Meta-trains the learned optimizer's controller.

    python experiments/meta_train.py --config configs/meta_train.py:small \
        --workdir runs/meta_train --config.export=runs/meta_train/theta

Interrupted or out of its ``budget_seconds``, the same command goes on where it was.
``small`` needs the emoji that ``make data`` prepares; ``smoke`` needs nothing.

With ``--config.meta.parallel=particles`` the devices share each family's particles.
Several processes then work together, as those of ``finetune.py`` do:

    python experiments/meta_train.py --config configs/meta_train.py:small \
        --workdir /shared/meta_train --config.meta.parallel=particles \
        --coordinator host0:1234 --processes 2 --process 0
"""

import sys
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.common import export_weights, meta_validation
from experiments.processes import joined
from meta_opt.meta_training.config import MetaTrainConfig
from meta_opt.meta_training.outer_loop import meta_train
from meta_opt.optimizers.weights import load_theta
from meta_opt.tasks.families import make_task
from meta_opt.types import check_keys, from_config

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "checkpoints and logs go here")


def main(argv: list[str]) -> None:
    """Parses, builds, runs, exports."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are flags")
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax tells of every file.
    settings = _CONFIG.value.to_dict()
    check_keys(
        "config",
        settings,
        (
            *("meta", "start", "validation", "cpu_devices", "data_dir"),
            *("export", "export_from", "export_share"),
        ),
    )
    if settings["export_from"] not in ("best", "last"):
        sys.exit(
            f"meta_train: no export_from {settings['export_from']!r}: best or last"
        )
    if settings["export_share"] != 1.0 and not settings["start"]:
        sys.exit("meta_train: export_share is of the way from start; name a start")
    if settings["cpu_devices"]:
        jax.config.update("jax_num_cpu_devices", settings["cpu_devices"])
    with joined() as first:
        _run(settings, first)


def _run(settings: dict[str, Any], first: bool) -> None:
    # Programs take a minute each to compile; a resumed run finds them there.
    jax.config.update("jax_compilation_cache_dir", f"{_WORKDIR.value}/compiled")
    config = from_config(MetaTrainConfig, settings["meta"])
    data_dir = settings["data_dir"] or None
    tasks = {name: make_task(name, data_dir) for name in config.families}
    validation = meta_validation(settings["validation"], config.controller, data_dir)
    start = None
    if settings["start"]:
        start, shape = load_theta(settings["start"])
        if shape != config.controller:
            sys.exit(f"meta_train: {settings['start']} has another controller: {shape}")
    result = meta_train(
        config, tasks, _WORKDIR.value, validation=validation, start=start
    )
    if not first:
        return
    done = "finished" if result.finished else "stopped; run again to go on"
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
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
