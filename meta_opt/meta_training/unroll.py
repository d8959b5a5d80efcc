"""One inner run: a task trained from start to end under given controller weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.transformation import controlled
from meta_opt.tasks.task import Arrays, Task
from meta_opt.types import PyTree


class Outcome(NamedTuple):
    """Loss and error rate on the target examples after a run; float32 []."""

    loss: jax.Array
    error: jax.Array


def unroll(
    task: Task,
    theta: PyTree,
    config: ControllerConfig,
    key: jax.Array,
    num_steps: jax.Array | int,
    reparametrisation: float = 1.0,
) -> Outcome:
    """Trains ``task`` once and judges the result on its target examples.

    Pure: vmap over ``theta`` for a population, over ``key`` for seeds. The same key
    gives the same initial parameters and batches whatever ``theta`` is.

    Args:
        task: the task.
        theta: controller weights.
        config: their shape.
        key: random key of initialisation, batches and reparametrisation.
        num_steps: length of the run; may be traced, so that one program serves all.
        reparametrisation: parameters are trained as ``p / c`` with c log-uniform in
            [1 / r, r]; 1 for none. Keeps the controller from relying on one scale.

    Returns:
        The outcome; not finite if the run diverged.
    """
    init_key, batch_key, scale_key = jax.random.split(key, 3)
    size = len(next(iter(task.splits.train.values())))
    tx = controlled(num_steps, theta=theta, config=config, stacked=task.stacked)
    spread = jnp.log(reparametrisation)
    scale = jnp.exp(jax.random.uniform(scale_key, (), minval=-spread, maxval=spread))

    def loss(params: PyTree, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        return task.loss(jax.tree.map(lambda p: p * scale, params), arrays)

    def step(t: jax.Array, carry: tuple) -> tuple:
        params, state = carry
        picks = jax.random.randint(
            jax.random.fold_in(batch_key, t), (task.batch_size,), 0, size
        )
        batch = {name: x[picks] for name, x in task.splits.train.items()}
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        known = {}
        if task.gives_value:
            known["value"] = value
        if task.feedback_every:
            known["feedback"] = jax.lax.cond(
                t % task.feedback_every == 0,
                lambda p: loss(p, task.splits.feedback)[0],
                lambda p: jnp.float32(jnp.nan),
                params,
            )
        updates, state = tx.update(grads, state, params, **known)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(lambda p: p / scale, task.init(init_key))
    params, _ = jax.lax.fori_loop(0, num_steps, step, (params, tx.init(params)))
    return Outcome(*loss(params, task.splits.target))
