"""One step of an inner run, for meta-training, the meta-test and perturbed runs."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from meta_opt.tasks.task import Arrays, Task
from meta_opt.types import PyTree

Perturb: TypeAlias = Callable[[jax.Array, PyTree, PyTree], tuple[jax.Array, PyTree]]
"""``(value, grads, params) -> (value, grads)``: changes loss and gradient before they
are passed to the optimizer."""


def inner_step(
    task: Task,
    tx: optax.GradientTransformationExtraArgs,
    step: jax.Array,
    carry: tuple[PyTree, optax.OptState],
    batch: Arrays,
    key: jax.Array,
    scale: jax.Array | None = None,
    perturb: Perturb | None = None,
) -> tuple[PyTree, optax.OptState]:
    """Returns parameters and optimizer state after one step.

    If the task provides them, the optimizer is given the loss as ``value`` and, every
    ``task.feedback_every`` steps, the validation loss as ``feedback``.

    Args:
        task: task with loss and validation examples.
        tx: the optimizer.
        step: number of completed steps, int32 [].
        carry: parameters and optimizer state before the step.
        batch: training batch, arrays [B, ...].
        key: random key of the loss, for dropout and augmentation.
        scale: scale of a reparametrised task, float32 []: the task's parameters are
            ``scale`` times the trained ones.
        perturb: see `Perturb`.
    """
    params, state = carry

    def scaled(params: PyTree) -> PyTree:
        return params if scale is None else jax.tree.map(lambda p: p * scale, params)

    def train_loss(params: PyTree) -> tuple[jax.Array, jax.Array]:
        return task.loss_on_batch(scaled(params), batch, key)

    (value, _), grads = jax.value_and_grad(train_loss, has_aux=True)(params)
    if perturb is not None:
        value, grads = perturb(value, grads, params)
    provided = {}
    if task.provides_loss:
        provided["value"] = value
    if task.feedback_every:
        provided["feedback"] = jax.lax.cond(
            step % task.feedback_every == 0,
            lambda p: task.loss(scaled(p), task.splits.validation)[0],
            lambda p: jnp.float32(jnp.nan),
            params,
        )
    updates, state = tx.update(grads, state, params, **provided)
    return optax.apply_updates(params, updates), state
