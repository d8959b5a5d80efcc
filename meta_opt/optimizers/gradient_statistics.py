"""Reduces every unit's arrays to the controller's statistics."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_opt.features.statistics import Statistics, structure
from meta_opt.mesh_axes import automatic_axes
from meta_opt.optimizers.grouping import Group, concat, is_explicit, replicated
from meta_opt.optimizers.second_moment import (
    Factored,
    Second,
    mean_squares,
    square_sums,
)
from meta_opt.optimizers.update_rule import GroupArrays

_PARAM_EVERY = 8
"""Steps between measurements of the parameters' size."""
_LARGEST = float(jnp.finfo(jnp.float32).max)


def initial_structure(group: Group, params: Sequence[jax.Array]) -> jax.Array:
    """`structure` of each unit of a group of matrices: float32 [U].

    Args:
        group: the group.
        params: the initial parameters of its chunks [u, *shape].
    """
    found = []
    for chunk in params:
        square = jnp.square(chunk.astype(jnp.float32))
        row = replicated(group.mean(square, group.column_axes))
        column = replicated(group.mean(square, group.row_axes))
        found.append(
            structure(
                row.reshape(len(chunk), -1),
                column.reshape(len(chunk), -1),
                group.count(group.row_axes),
                group.count(group.column_axes),
            )
        )
    return concat(found)


def measure_gradients(
    group: Group, arrays: GroupArrays, *, products: bool, pallas: bool
) -> tuple[Second, jax.Array | None]:
    """Mean squares of a group's gradients, and their product with the momenta.

    Args:
        group: the group.
        arrays: its arrays.
        products: whether to measure gradient times momentum.
        pallas: measure large matrices by `fused_sums`, where they have second moments.

    Returns:
        `mean_squares`, and the sum of gradient times momentum of each unit [U].

    Raises:
        ValueError: ``pallas`` with arrays on a mesh of several devices.
    """
    if pallas and products and group.large and isinstance(arrays.second, Factored):
        return _by_kernel(group, arrays)
    means = mean_squares(group, arrays.grads, arrays.second)
    if not products:
        return means, None
    chunks = zip(arrays.grads, arrays.momentum, strict=True)
    return means, concat([_product_sum(group, g, m) for g, m in chunks])


def _product_sum(group: Group, grad: jax.Array, momentum: jax.Array) -> jax.Array:
    """Sum of grad times momentum of each unit [u]."""
    if not (group.large and group.column_axes):
        return jnp.sum(grad * momentum.astype(jnp.float32), axis=group.all_axes)
    # XLA on CPU does not fuse the conversion with the sum. Without the barrier it makes
    # float32 copies of all momenta before the backward pass and keeps them throughout
    # it.
    grad, momentum = jax.lax.platform_dependent(
        grad,
        momentum,
        cpu=lambda *both: jax.lax.optimization_barrier(both),
        default=lambda *both: both,
    )
    product = grad * momentum.astype(jnp.float32)
    # Reduced over columns first, as the squares are, so that one pass makes both.
    rows = jax.lax.optimization_barrier(jnp.sum(product, axis=group.column_axes))
    return jnp.sum(rows, axis=tuple(range(1, rows.ndim)))


def _by_kernel(group: Group, arrays: GroupArrays) -> tuple[Second, jax.Array]:
    from meta_opt.optimizers.fused_sums import factored_sums

    axes = automatic_axes()
    if is_explicit(arrays.grads[0]) or any(n > 1 for n in axes.values()):
        raise ValueError(
            "pallas=True is for arrays on one device, and the mesh has "
            f"{axes or 'explicit axes'}: leave it out"
        )
    unit = group.first
    shape = (-1, unit.rows, unit.columns)
    sums = [
        factored_sums(g.reshape(shape), m.reshape(shape))
        for g, m in zip(arrays.grads, arrays.momentum, strict=True)
    ]
    row, column, product = (concat(list(parts)) for parts in zip(*sums, strict=True))
    means = Factored(
        row.reshape(-1, *unit.shape[: unit.split]),
        column.reshape(-1, *unit.shape[unit.split :]),
    )
    return means, product


def gather_statistics(
    groups: Sequence[Group],
    arrays: Sequence[GroupArrays],
    means: Sequence[Second],
    products: Sequence[jax.Array | None],
    momentum_square: jax.Array,
    param_square_before: jax.Array,
    count: jax.Array,
    learned: bool,
) -> Statistics:
    """Sums of squares and products of every unit, [N] each, replicated.

    Args:
        groups: the groups, in the order of their units.
        arrays: their arrays.
        means: `mean_squares` of each group.
        products: sums of gradient times momentum of each [U], see `measure_gradients`.
        momentum_square: [N], sums of squares of the momenta.
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
    if not learned:  # The hand-designed rule needs nothing else.
        zero = jnp.zeros_like(grad_square)
        return Statistics(grad_square, zero, zero, zero)
    grad_momentum = gather([x for x in products if x is not None])

    def param_square() -> jax.Array:
        found = gather(
            [
                jnp.sum(jnp.square(p.astype(jnp.float32)), axis=group.all_axes)
                for group, array in zip(groups, arrays, strict=True)
                for p in array.params
            ]
        )
        # An overflow in one tensor must not invalidate the features that all share.
        return jnp.where(jnp.isfinite(found), found, _LARGEST)

    return Statistics(
        grad_square=grad_square,
        momentum_square=momentum_square,
        # Parameters change slowly, so that measuring them in every step is not
        # worthwhile.
        param_square=jax.lax.cond(
            count % _PARAM_EVERY == 0, param_square, lambda: param_square_before
        ),
        grad_momentum=grad_momentum,
    )
