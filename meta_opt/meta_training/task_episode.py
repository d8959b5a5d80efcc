"""A task as an `Episode` of windows, for estimators on single windows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.meta_training.estimators.episode import Episode
from meta_opt.meta_training.parametrisation import Parametrisation
from meta_opt.meta_training.unroll import Augmentation, Unroll
from meta_opt.optimizers.transformation import learned_transformation
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree


class WindowState(NamedTuple):
    """An inner run between two windows.

    Attributes:
        params: parameters of the task.
        optimizer: state of the optimizer.
        window: number of completed windows, int32 [].
        num_steps: length of the run, int32 [].
        key: data of the random key of the whole run, uint32.
    """

    params: PyTree
    optimizer: PyTree
    window: jax.Array
    num_steps: jax.Array
    key: jax.Array


def task_episode(
    task: Task,
    parts: Parametrisation,
    windows: int,
    augmentation: Augmentation = Augmentation(),  # noqa: B008
    error_weight: float = 1.0,
    final_only: bool = False,
    differentiable: bool = False,
) -> Episode:
    """Cuts a task's runs into windows.

    The length of a run is drawn log-uniformly from the task's horizons when it begins,
    and divided into ``windows`` windows whose lengths differ by at most one step.

    Args:
        task: the task.
        parts: map from the episode's theta to the controller's weights.
        windows: number of windows of a run.
        augmentation: random changes of the task, drawn for each run.
        error_weight: weight of the error rate relative to the log loss.
        final_only: whether only the loss at the end of the last window counts, rather
            than the losses at the ends of all windows.
        differentiable: whether windows must support reverse-mode differentiation.

    Returns:
        The episode; the loss of a window is the log of the loss on the task's test
        examples at the end of the window, plus their weighted error rate.

    Raises:
        ValueError: the shortest horizon is below the number of windows.
    """
    if task.horizons[0] < windows:
        raise ValueError(
            f"task {task.name!r}: its shortest horizon {task.horizons[0]} is below "
            f"windows={windows}; each window needs at least one step"
        )
    low, high = (float(np.log(h)) for h in task.horizons)
    longest = -(-task.horizons[1] // windows) + 1 if differentiable else 0

    def run(trained: PyTree, key: jax.Array, num_steps: jax.Array) -> Unroll:
        tx = learned_transformation(
            num_steps,
            theta=parts.theta(trained),
            config=parts.config,
            stacked=task.stacked,
        )
        return Unroll(task, tx, key, augmentation)

    def init(key: jax.Array) -> WindowState:
        horizon_key, run_key = jax.random.split(key)
        log_steps = jax.random.uniform(horizon_key, (), minval=low, maxval=high)
        num_steps = jnp.round(jnp.exp(log_steps)).astype(jnp.int32)
        params, optimizer = run(parts.trained(), run_key, num_steps).start()
        return WindowState(
            params, optimizer, jnp.int32(0), num_steps, jax.random.key_data(run_key)
        )

    def segment(
        theta: PyTree, state: WindowState, key: jax.Array
    ) -> tuple[WindowState, jax.Array]:
        del key  # All randomness comes from the key of the run in the state.
        inner = run(theta, jax.random.wrap_key_data(state.key), state.num_steps)
        first = state.window * state.num_steps // windows
        last = (state.window + 1) * state.num_steps // windows
        carry = inner.run((state.params, state.optimizer), first, last, longest)
        outcome = inner.evaluate(carry)
        value = jnp.log(outcome.loss + 1e-2) + error_weight * outcome.error
        return (
            WindowState(*carry, state.window + 1, state.num_steps, state.key),
            value,
        )

    weights = (0.0,) * (windows - 1) + (1.0,) if final_only else None
    return Episode(init, segment, windows, weights)
