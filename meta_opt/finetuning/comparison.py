"""Runs that differ only in their optimizer: same model, batches and budget."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.runs import finetune
from meta_opt.finetuning.state import fingerprint
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.optimizers.weights import load_theta
from meta_opt.run_log import describe_environment, settings_digest
from meta_opt.types import from_config
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.image_text_model import load_weights

EXPORT = "final"
"""Name of the trained weights in a run's directory, without suffix."""


def with_optimizer(base: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Returns ``base`` with another optimizer.

    Args:
        base: configuration of the run. The optimizer's length, pattern of stacked
            parameters and groups are kept; its other settings become the defaults.
        settings: fields of `OptimizerConfig`.

    Raises:
        ValueError: the settings are invalid; the message names the setting.
    """
    kept = {
        name: getattr(base.optimizer, name)
        for name in ("num_steps", "stacked", "groups")
    }
    optimizer = from_config(OptimizerConfig, {**kept, **settings})
    make_optimizer(optimizer)
    return dataclasses.replace(base, optimizer=optimizer)


def run_all(
    configs: Mapping[str, RunConfig],
    workdir: str | Path,
    *,
    fresh: bool = False,
    announce: Callable[[str, bool], None] = lambda name, finished: None,
) -> dict[str, Path]:
    """Trains runs in sequence; resumes interrupted runs and reuses finished ones.

    The name of a run's directory has a hash of everything that the outcome depends on:
    configuration, contents of the initial weights and of the learned optimizer, code
    revision, package versions and device. The trained weights are written there as
    `EXPORT`.

    Args:
        configs: runs by name.
        workdir: parent of the runs' directories.
        fresh: whether to discard earlier results of these runs.
        announce: called before each run with its name and whether it is finished.

    Returns:
        The directory of each run.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after saving.
        ValueError: weights are missing or damaged; see also `finetune`.
    """
    environment = describe_environment()
    folders = {
        name: Path(workdir) / f"{name}-{_digest(config, environment)}"
        for name, config in configs.items()
    }
    for name, config in configs.items():
        folder = folders[name]
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        # The files in the order in which a run writes them.
        finished = all(
            (folder / file).is_file() for file in ("result.json", f"{EXPORT}.json")
        )
        announce(name, finished)
        if not finished:
            export = ExportConfig(str(folder / EXPORT))
            finetune(dataclasses.replace(config, export=export), folder)
    return folders


def _digest(config: RunConfig, environment: Any) -> str:
    """Hashes everything that the outcome of a run depends on."""
    weights: dict[str, int] = {}
    workload = config.workload
    if workload.model.weights:
        model = load_weights(workload.model, workload.preprocessing())
        weights["model"] = fingerprint(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    if config.optimizer.name == "learned":
        weights["optimizer"] = fingerprint(load_theta(config.optimizer.weights)[0])
    return settings_digest(
        {"config": config.settings(), "weights": weights, "environment": environment}
    )
