"""The range of feature values in meta-training, which a weights file stores."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.meta_training.unroll import Augmentation, Unroll
from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.transformation import learned_transformation
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree


def with_feature_range(
    tasks: Iterable[Task],
    theta: PyTree,
    config: ControllerConfig,
    num_steps: Mapping[str, int],
    budgets: Sequence[float] = (1.0,),
    seed: int = 0,
) -> ControllerConfig:
    """Measures the range of each feature over runs of all tasks.

    Args:
        tasks: tasks that the weights were meta-trained on.
        theta: weights of the controller.
        config: architecture of the controller.
        num_steps: length of a run by family; default: the task's largest horizon.
        budgets: run lengths as fractions of ``num_steps``; one run for each.
        seed: random seed of the runs.

    Returns:
        ``config`` with ``feature_range`` set.

    Raises:
        ValueError: no tasks.
    """
    recording = dataclasses.replace(config, feature_range=(), record_range=True)
    seen = []
    for task in tasks:
        full = num_steps.get(task.name, task.horizons[1])
        lengths = [max(1, round(budget * full)) for budget in budgets]
        seen += _feature_extremes(task, theta, recording, lengths, seed)
    if not seen:
        raise ValueError("the feature range needs at least one task")
    low = np.min([x[0] for x in seen], axis=0)
    high = np.max([x[1] for x in seen], axis=0)
    pairs = tuple(
        (round(float(a), 4), round(float(b), 4)) for a, b in zip(low, high, strict=True)
    )
    return dataclasses.replace(config, feature_range=pairs)


def _feature_extremes(
    task: Task,
    theta: PyTree,
    config: ControllerConfig,
    lengths: Sequence[int],
    seed: int,
) -> list[np.ndarray]:
    """Returns the smallest and largest features [2, F] of a run of each length."""

    @jax.jit
    def run(theta: PyTree, key: jax.Array, num_steps: jax.Array) -> jax.Array:
        unroll = Unroll(
            task,
            learned_transformation(
                num_steps, theta=theta, config=config, stacked=task.stacked
            ),
            key,
            Augmentation(),
        )
        _, state = unroll.run(unroll.start(), 0, num_steps, 0)
        return state.controller.recorded_range  # type: ignore[union-attr, attr-defined]

    theta, key = jax.tree.map(jnp.asarray, theta), jax.random.key(seed)
    return [np.asarray(run(theta, key, jnp.int32(steps))) for steps in lengths]
