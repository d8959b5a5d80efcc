"""Shared parts of the meta-training experiments."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments import cli
from meta_opt.meta_training.feature_range import with_feature_range
from meta_opt.meta_training.validation import Validation
from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.weights import save_theta
from meta_opt.studies.meta_test.records import baseline_losses
from meta_opt.tasks.families import make_task
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree


def meta_validation(
    settings: Mapping[str, Any], controller: ControllerConfig, data_dir: str | None
) -> Validation | None:
    """Builds the meta-validation of ``config.validation``; None if it has no tasks."""
    names = settings["tasks"]
    if not names:
        return None
    return Validation(
        {name: make_task(name, data_dir) for name in names},
        baseline_losses(settings["results"], names, settings["baseline"]),
        controller,
    )


def export_weights(
    path: str,
    theta: PyTree,
    controller: ControllerConfig,
    tasks: Iterable[Task],
    recipe: Mapping[str, Any],
    num_steps: Mapping[str, int] | None = None,
    budgets: Sequence[float] = (1.0,),
) -> None:
    """Writes weights with their training tasks and the command.

    The range of each feature, over runs on every task, is stored in their config.
    """
    tasks = list(tasks)
    controller = with_feature_range(tasks, theta, controller, num_steps or {}, budgets)
    made = {
        **recipe,
        "families": [task.name for task in tasks],
        "datasets": sorted({task.dataset for task in tasks}),
        "command": cli.command_line(),
    }
    save_theta(path, theta, controller, made)
    print(f"weights written to {path}.safetensors")
