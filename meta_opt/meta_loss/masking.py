"""Masking of losses that are not finite or not used in a batch."""

import jax
import jax.numpy as jnp


def present_losses(losses: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns which losses are used: bool [T], True if finite and not masked.

    Every combiner leaves out the other losses.

    Args:
        losses: losses [T].
        mask: bool [T], False for losses to leave out; None to use all.

    >>> present_losses(jnp.array([1.0, jnp.nan, jnp.inf])).tolist()
    [True, False, False]
    """
    finite = jnp.isfinite(losses)
    return finite if mask is None else finite & mask


def zero_absent(losses: jax.Array, present: jax.Array) -> jax.Array:
    """Returns ``losses`` [T] in at least float32, with unused losses set to 0.

    Selecting *before* any computation makes the derivative with respect to an unused
    loss exactly 0; selecting afterwards would give 0 times NaN.

    Args:
        losses: losses [T].
        present: bool [T] from `present_losses`.

    >>> jax.grad(lambda x: jnp.sum(zero_absent(x, present_losses(x)) ** 2))(
    ...     jnp.array([1.0, jnp.nan])
    ... ).tolist()
    [2.0, 0.0]
    """
    wide = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
    return jnp.where(present, wide, 0)
