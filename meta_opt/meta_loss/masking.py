"""Which losses of a batch count: those that are finite and not masked."""

import jax
import jax.numpy as jnp


def present_losses(losses: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Which losses count: bool [T], true where a loss is finite and not masked.

    Its complement are the losses that every combiner leaves out.

    Args:
        losses: [T].
        mask: bool [T], false for losses to be left out; None for all.

    >>> present_losses(jnp.array([1.0, jnp.nan, jnp.inf])).tolist()
    [True, False, False]
    """
    finite = jnp.isfinite(losses)
    return finite if mask is None else finite & mask


def zero_absent(losses: jax.Array, present: jax.Array) -> jax.Array:
    """``losses`` [T] as float32 (or wider), 0 where they do not count.

    Selecting *before* anything is computed makes the derivative with respect to an
    absent loss exactly 0; selecting afterwards would give 0 times NaN.

    Args:
        losses: [T].
        present: bool [T], of `present_losses`.

    >>> jax.grad(lambda x: jnp.sum(zero_absent(x, present_losses(x)) ** 2))(
    ...     jnp.array([1.0, jnp.nan])
    ... ).tolist()
    [2.0, 0.0]
    """
    wide = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
    return jnp.where(present, wide, 0)
