"""The training step of all runs, for any objective."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from meta_opt.finetuning.objective import Gradients, Objective
from meta_opt.finetuning.state import TrainState
from meta_opt.types import PyTree

TrainStep: TypeAlias = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
"""``(state, batch, feedback=None) -> (state, metrics)``."""


def make_train_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    accumulation_steps: int = 1,
) -> TrainStep:
    """Builds the training step.

    With accumulation the batch is split into micro-batches, and loss, metrics and
    gradient are averaged over them, which equals those of the full batch for a loss
    that is a mean over examples. A contrastive loss only has negatives from its own
    micro-batch.

    Args:
        objective: computes the gradient and scalar metrics, and may have a state.
        tx: the optimizer, which gets ``value=loss`` unless the objective is private,
            and ``feedback`` if there is one; optimizers that take neither work too.
        accumulation_steps: number of micro-batches, a divisor of B.

    Returns:
        A pure function of (state, batch, feedback=None), to be compiled with the state
        donated. ``feedback`` is a validation loss [], NaN in steps without one.
        Its metrics are ``loss``, ``grad_norm``, ``update_norm`` (global L2 norms),
        ``nonfinite`` (count so far), and the objective's.

    Raises:
        ValueError: ``accumulation_steps`` is below 1, or (when traced) does not divide
            the batch.
    """
    if accumulation_steps < 1:
        raise ValueError(f"accumulation_steps={accumulation_steps} must be at least 1")
    tx = optax.with_extra_args_support(tx)

    def gradient(state: TrainState, batch: PyTree, rng: jax.Array) -> Gradients:
        def of_part(part: PyTree, rng: jax.Array) -> Gradients:
            return objective.gradient(
                state.objective, state.params, state.frozen, part, rng
            )

        if accumulation_steps == 1:
            return of_part(batch, rng)

        def micro_step(total, inputs):
            micro_batch, index = inputs
            out = of_part(micro_batch, jax.random.fold_in(rng, index))
            return jax.tree.map(_accumulate, total, out), None

        micro_batches = jax.tree.map(lambda x: _split(x, accumulation_steps), batch)
        shapes = jax.eval_shape(
            of_part, jax.tree.map(lambda x: x[0], micro_batches), rng
        )
        # Sums in at least float32: bfloat16 would lose later micro-batches.
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
            shapes,
        )
        total, _ = jax.lax.scan(
            micro_step, zeros, (micro_batches, jnp.arange(accumulation_steps))
        )
        return jax.tree.map(
            lambda x, like: (x / accumulation_steps).astype(like.dtype), total, shapes
        )

    def train_step(
        state: TrainState, batch: PyTree, feedback: jax.Array | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(state.rng, state.step)
        extra = {} if feedback is None else {"feedback": feedback}
        noise_key = rng
        if objective.privatise is not None or objective.modulate is not None:
            rng, noise_key = jax.random.split(rng)
        loss, metrics, signals, grads = gradient(state, batch, rng)
        if objective.modulate is not None:
            grads, modulation = objective.modulate(grads, signals, noise_key)
            metrics = {**metrics, **modulation}
        if objective.privatise is None:
            extra["value"] = loss
        else:
            size = jax.tree.leaves(batch)[0].shape[0]
            grads = objective.privatise(grads, noise_key, size)
            grads = jax.tree.map(lambda g, x: g.astype(x.dtype), grads, state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra)
        updates = jax.tree.map(lambda u: u * state.scale.astype(u.dtype), updates)
        nonfinite = state.nonfinite + ~jnp.isfinite(loss)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            frozen=state.frozen,
            opt_state=opt_state,
            rng=state.rng,
            nonfinite=nonfinite,
            scale=state.scale,
            objective=objective.update(state.objective, signals),
        )
        return new_state, {
            "loss": loss,
            "grad_norm": _norm(grads),
            "update_norm": _norm(updates),
            "nonfinite": nonfinite,
            **metrics,
        }

    return train_step


def _accumulate(total: jax.Array, x: jax.Array) -> jax.Array:
    return total + x.astype(total.dtype)


def _split(x: jax.Array, parts: int) -> jax.Array:
    """Splits [B, ...] into [parts, B / parts, ...].

    Micro-batch i has rows i, i + parts, ...: every device then has its share of every
    micro-batch of a sharded batch, and no communication is needed.
    """
    if x.shape[0] % parts:
        raise ValueError(
            f"a batch of {x.shape[0]} cannot be cut into {parts} micro-batches"
        )
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def _norm(tree: PyTree) -> jax.Array:
    """Returns the global L2 norm, in float32."""
    return optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))
