"""Regulariser that keeps a combined loss near the sum of its losses."""

import jax
import jax.numpy as jnp

from meta_opt.meta_loss.masking import present_losses, zero_absent


def sum_regulariser(
    losses: jax.Array,
    combined: jax.Array,
    gamma: float | jax.Array,
    mask: jax.Array | None = None,
) -> jax.Array:
    r"""Returns gamma times the distance of the combined loss to the sum of the losses.

    .. math:: \gamma \Big| \sum_t l_t - c(l; \phi) \Big|

    This is the regulariser of MELTR (arXiv:2303.13009). Losses that are not finite or
    masked are neither in the sum nor in c. The derivative is 0 if the two are equal.

    Args:
        losses: losses l, [T].
        combined: combined loss c(l; phi), a scalar.
        gamma: weight of the regulariser.
        mask: mask of the combiner, bool [T]; None to use all losses.

    >>> float(sum_regulariser(jnp.array([1.0, 2.0]), jnp.array(5.0), 0.5))
    1.0
    """
    total = jnp.sum(zero_absent(losses, present_losses(losses, mask)))
    return gamma * jnp.abs(total - combined)
