"""One step of an inner run: of meta-training, the meta-test and perturbed runs."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from meta_opt.tasks.task import Arrays, Task
from meta_opt.types import PyTree

Perturb: TypeAlias = Callable[[jax.Array, PyTree, PyTree], tuple[jax.Array, PyTree]]
"""``(value, grads, params) -> (value, grads)``: loss and gradient as they are given to
the optimizer."""


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
    """Parameters and optimizer state after one step.

    The optimizer gets the loss as ``value`` and, now and then, the validation loss as
    ``feedback``, where the task provides them.

    Args:
        task: loss and validation examples.
        tx: the optimizer.
        step: int32 [], steps done.
        carry: parameters and optimizer state before.
        batch: arrays [B, ...].
        key: random key of the loss (dropout and the like).
        scale: float32 [], of a reparametrised task: its parameters are ``scale`` times
            those that are trained.
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
