"""Second moments of gradients: factored for rank >= 2, full for rank 0 and 1.

A tensor of rank >= 2, seen as rows x columns, keeps the means of its squares over
columns and over rows, whose outer product approximates them (Adafactor, Shazeer and
Stern 2018, arXiv:1804.04235); memory is that of a row and a column.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from meta_opt.features.statistics import TINY, smooth
from meta_opt.features.tensors import TensorInfo
from meta_opt.optimizers.grouping import (
    Group,
    concat,
    per_unit,
    replicated_if_automatic,
)
from meta_opt.types import PyTree

_EPSILON = 1e-8
"""Floor of the second moment, relative to its mean over the unit."""


class Factored(NamedTuple):
    """Means of squares: row [U, *rows] over columns, column [U, *columns] over rows."""

    row: jax.Array
    column: jax.Array


Second: TypeAlias = Factored | jax.Array | None
"""Of a group: `Factored`, or full [U, *shape] for rank 0 and 1; None: not needed."""


class SecondMoments(NamedTuple):
    """Second moments of all leaves, as the optimizer's state keeps them; float32.

    Every leaf of both trees is an array. Unused moments are a single zero, since Orbax
    does not save empty arrays.

    Attributes:
        row: structure of the parameters; means of squares over columns of leaves of
            rank >= 2, the full second moment of rank 0 and 1.
        column: structure of the parameters; means of squares over rows of leaves of
            rank >= 2.
    """

    row: PyTree
    column: PyTree


def init_second(
    params: PyTree, infos: Sequence[TensorInfo], needed: Sequence[bool]
) -> SecondMoments:
    """Zeros for all leaves, with the shardings of the parameters.

    Args:
        params: the parameters.
        infos: descriptions of their leaves.
        needed: for each leaf, whether a direction uses its second moment.
    """
    leaves: list[Any]
    treedef: Any
    leaves, treedef = jax.tree.flatten(params)
    pairs = [
        _zeros(p, info) if need else (_unused(), _unused())
        for p, info, need in zip(leaves, infos, needed, strict=True)
    ]
    return SecondMoments(
        row=treedef.unflatten([row for row, _ in pairs]),
        column=treedef.unflatten([column for _, column in pairs]),
    )


def _unused() -> jax.Array:
    return jnp.zeros(1, jnp.float32)


def _zeros(param: jax.Array, info: TensorInfo) -> tuple[jax.Array, jax.Array]:
    # Sums of zeros rather than new zeros, since they inherit the parameter's sharding.
    zeros = jnp.zeros_like(param, dtype=jnp.float32)
    if len(info.shape) < 2:
        return zeros, _unused()
    offset = int(bool(info.layers) or param.ndim > len(info.shape))
    rows = tuple(range(offset, offset + info.split))
    columns = tuple(range(offset + info.split, param.ndim))
    return jnp.sum(zeros, axis=columns), jnp.sum(zeros, axis=rows)


def pack_second(group: Group, moments: SecondMoments, needed: bool) -> Second:
    """The second moments of a group, picked from ``moments``, lists of all leaves."""
    if not needed:
        return None
    row = group.pack_small(moments.row, group.row_axes)
    if not group.column_axes:
        return row
    return Factored(row, group.pack_small(moments.column, group.column_axes))


def unpack_second(
    group: Group, second: Second, into: SecondMoments, slots: Sequence[jax.Array]
) -> None:
    """Writes a group's second moments to their leaves' places in the lists ``into``."""
    parts = second if isinstance(second, Factored) else (second,)
    sides = (group.row_axes, group.column_axes)
    for x, places, axes in zip(parts, into, sides, strict=False):
        if x is not None:
            chunks = [group.slice_chunk(x, j, slots) for j in range(len(group.chunks))]
            group.unpack(chunks, places, slots, axes)


def mean_squares(group: Group, grads: list[jax.Array], second: Second) -> Second:
    """This step's squared gradients, reduced as ``second`` is."""
    if second is None:
        return None
    squares = [jnp.square(g) for g in grads]
    if not isinstance(second, Factored):
        return concat(squares)
    # Replicated, so that derived values need no further communication.
    return Factored(
        replicated_if_automatic(
            concat([group.mean(x, group.column_axes) for x in squares])
        ),
        replicated_if_automatic(
            concat([group.mean(x, group.row_axes) for x in squares])
        ),
    )


def square_sums(group: Group, grads: list[jax.Array], means: Second) -> jax.Array:
    """Sum of squared gradients of each unit [U], from ``means`` where it exists."""
    if means is None:
        return concat([jnp.sum(jnp.square(g), axis=group.all_axes) for g in grads])
    if isinstance(means, Factored):
        axes = tuple(range(1, means.row.ndim))
        return jnp.sum(means.row, axis=axes) * group.count(group.column_axes)
    return jnp.sum(means, axis=group.all_axes)


def accumulate(
    second: Factored | jax.Array,
    means: Second,
    square: jax.Array | None,
    one_minus_b2: jax.Array,
) -> Factored | jax.Array:
    """Moves the second moment towards this step's squares (times ``square`` [U])."""

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        if square is not None:
            new = new * per_unit(square, new)
        return old + per_unit(one_minus_b2, old) * (new - old)

    return jax.tree.map(move, second, means)


def inverse_roots(second: Factored | jax.Array, group: Group) -> tuple[jax.Array, ...]:
    """Factors whose product, up to a constant a unit, is one over the root."""
    rows, columns = group.row_axes, group.column_axes

    def root(
        x: jax.Array, axes: tuple[int, ...], missing: tuple[int, ...]
    ) -> jax.Array:
        x = jnp.expand_dims(x, missing)
        mean = group.mean(x, axes, keepdims=True)
        return jax.lax.rsqrt(x / (smooth(mean) + TINY) + _EPSILON)

    if isinstance(second, Factored):
        return root(second.row, rows, columns), root(second.column, columns, rows)
    return (root(second, rows, ()),)
