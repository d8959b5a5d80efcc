"""Keeps a combined loss near the sum of the losses that it combines."""

import jax
import jax.numpy as jnp

from meta_opt.meta_loss.masking import present_losses, zero_absent


def sum_regulariser(
    losses: jax.Array,
    combined: jax.Array,
    gamma: float | jax.Array,
    mask: jax.Array | None = None,
) -> jax.Array:
    r"""Distance of the combined loss to the sum, times gamma (arXiv:2303.13009).

    .. math:: \gamma \Big| \sum_t l_t - c(l; \phi) \Big|

    Losses that are not finite or masked are not in the sum, as they are not in c. The
    derivative where the two are equal is 0.

    Args:
        losses: l, [T].
        combined: c(l; phi), a scalar.
        gamma: weight.
        mask: bool [T] as given to the combiner; None for all.

    >>> float(sum_regulariser(jnp.array([1.0, 2.0]), jnp.array(5.0), 0.5))
    1.0
    """
    total = jnp.sum(zero_absent(losses, present_losses(losses, mask)))
    return gamma * jnp.abs(total - combined)
