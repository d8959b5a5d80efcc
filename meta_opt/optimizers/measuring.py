"""Reduces every unit's arrays to the controller's statistics."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_opt.features.statistics import Statistics
from meta_opt.optimizers.grouping import Group, replicated
from meta_opt.optimizers.second_moment import Second, square_sums
from meta_opt.optimizers.update_rule import GroupArrays

_PARAM_EVERY = 8
"""Steps between measurements of the parameters' size."""


def gather_statistics(
    groups: Sequence[Group],
    arrays: Sequence[GroupArrays],
    means: Sequence[Second],
    momentum_square: jax.Array,
    param_square_before: jax.Array,
    count: jax.Array,
    learned: bool,
) -> Statistics:
    """Sums of squares and products of every unit, [N] each, in one place.

    Args:
        groups: the groups, in the order of their units.
        arrays: their arrays.
        means: `mean_squares` of each.
        momentum_square: [N], sums of squares of the momenta, which are known.
        param_square_before: [N], those of the parameters when last measured.
        count: int32 [], steps so far; parameters are measured every few.
        learned: False measures the gradients alone.

    Returns:
        The statistics.
    """

    def gather(parts: list[jax.Array]) -> jax.Array:
        empty = jnp.zeros(0, jnp.float32)
        return jnp.concatenate([empty, *[replicated(x) for x in parts]])

    grad_square = gather(
        [
            square_sums(group, array.grads, mean)
            for group, array, mean in zip(groups, arrays, means, strict=True)
        ]
    )
    if not learned:  # The hand-designed rule reads nothing else.
        zero = jnp.zeros_like(grad_square)
        return Statistics(grad_square, zero, zero, zero)
    grad_momentum = gather(
        [
            jnp.sum(g * m.astype(jnp.float32), axis=group.all_axes)
            for group, array in zip(groups, arrays, strict=True)
            for g, m in zip(array.grads, array.momentum, strict=True)
        ]
    )

    def param_square() -> jax.Array:
        return gather(
            [
                jnp.sum(jnp.square(p.astype(jnp.float32)), axis=group.all_axes)
                for group, array in zip(groups, arrays, strict=True)
                for p in array.params
            ]
        )

    return Statistics(
        grad_square=grad_square,
        momentum_square=momentum_square,
        # Parameters change slowly; reading them all for this every step does not pay.
        param_square=jax.lax.cond(
            count % _PARAM_EVERY == 0, param_square, lambda: param_square_before
        ),
        grad_momentum=grad_momentum,
    )
