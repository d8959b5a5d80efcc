"""Second moments of gradients: factored for rank >= 2, full for less.

A tensor of rank >= 2, seen as rows x columns, keeps the means of its squares over
columns and over rows, whose outer product stands for all of them (Shazeer and Stern,
"Adafactor", 2018); memory is that of a row and a column.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from meta_opt.features.statistics import TINY, smooth
from meta_opt.features.tensors import TensorInfo
from meta_opt.optimizers.grouping import Group, everywhere

_EPSILON = 1e-8
"""Floor of the second moment, relative to its mean over the unit."""


class Factored(NamedTuple):
    """Means of squares: row [U, *rows] over columns, column [U, *columns] over rows."""

    row: jax.Array
    column: jax.Array


Second: TypeAlias = Factored | jax.Array | None
"""Of a group: `Factored`, or full [U, *shape] for rank 0 and 1; None: not needed."""


def init_second(param: jax.Array, info: TensorInfo) -> Factored | jax.Array:
    """Zeros for one leaf, with the sharding of the parameter."""
    # Sums of zeros, not fresh zeros: they inherit the parameter's sharding.
    zeros = jnp.zeros_like(param, dtype=jnp.float32)
    if len(info.shape) < 2:
        return zeros
    offset = int(bool(info.layers) or param.ndim > len(info.shape))
    rows = tuple(range(offset, offset + info.split))
    columns = tuple(range(offset + info.split, param.ndim))
    return Factored(jnp.sum(zeros, axis=columns), jnp.sum(zeros, axis=rows))


def pack_second(group: Group, leaves: list) -> Second:
    """The second moments of a group, picked from those of all leaves."""
    if leaves[group.leaves[0]] is None:
        return None
    if len(group.first.shape) < 2:
        return group.pack_small(leaves)
    return Factored(
        group.pack_small({i: leaves[i].row for i in group.leaves}),
        group.pack_small({i: leaves[i].column for i in group.leaves}),
    )


def unpack_second(
    group: Group,
    second: Second,
    into: list,
    slots: list[jax.Array],
) -> None:
    """Writes a group's second moments back to their leaves' places in ``into``."""
    if second is None:
        return
    unpacked = []
    for x in jax.tree.leaves(second):
        places: list = [None] * len(into)
        chunks = [group.cut(x, j, slots) for j in range(len(group.chunks))]
        group.unpack(chunks, places, slots)
        unpacked.append(places)
    for i in group.leaves:
        values = [places[i] for places in unpacked]
        into[i] = Factored(*values) if isinstance(second, Factored) else values[0]


def mean_squares(group: Group, grads: list[jax.Array], second: Second) -> Second:
    """This step's squared gradients, reduced as ``second`` is."""
    if second is None:
        return None
    squares = [jnp.square(g) for g in grads]
    if not isinstance(second, Factored):
        return joined(squares)
    # On every device, so that what follows from them is sent no more.
    return Factored(
        everywhere(joined([jnp.mean(x, axis=group.column_axes) for x in squares])),
        everywhere(joined([jnp.mean(x, axis=group.row_axes) for x in squares])),
    )


def square_sums(group: Group, grads: list[jax.Array], means: Second) -> jax.Array:
    """Sum of squared gradients of each unit [U], from ``means`` where it exists."""
    if means is None:
        return joined([jnp.sum(jnp.square(g), axis=group.all_axes) for g in grads])
    if isinstance(means, Factored):
        axes = tuple(range(1, means.row.ndim))
        return jnp.sum(means.row, axis=axes) * group.first.columns
    return jnp.sum(means, axis=group.all_axes)


def accumulate(
    second: Factored | jax.Array,
    means: Second,
    square: jax.Array | None,
    forget: jax.Array,
) -> Factored | jax.Array:
    """Moves the second moment towards this step's squares (times ``square`` [U])."""

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        if square is not None:
            new = new * _per_unit(square, new)
        return old + _per_unit(forget, old) * (new - old)

    return jax.tree.map(move, second, means)


def inverse_roots(second: Factored | jax.Array, group: Group) -> tuple[jax.Array, ...]:
    """Factors whose product, up to a constant a unit, is one over the root."""

    def root(x: jax.Array, missing: tuple[int, ...]) -> jax.Array:
        mean = jnp.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True)
        relative = x / (smooth(mean) + TINY) + _EPSILON
        return jnp.expand_dims(jax.lax.rsqrt(relative), missing)

    if isinstance(second, Factored):
        return root(second.row, group.column_axes), root(second.column, group.row_axes)
    return (root(second, ()),)


def joined(chunks: list[jax.Array]) -> jax.Array:
    """Chunks [u, ...] as one array [U, ...]."""
    return chunks[0] if len(chunks) == 1 else jnp.concatenate(chunks)


def _per_unit(x: jax.Array, like: jax.Array) -> jax.Array:
    return x.reshape((-1,) + (1,) * (like.ndim - 1))
