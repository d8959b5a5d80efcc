"""Orthogonalisation of matrices by Newton-Schulz, in batches of one shape.

On a mesh the batch is divided over the devices, each of which then works on whole
matrices of its own: two exchanges for each shape, however many layers there are, and
no device holds or computes what another does.
"""

import collections
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from meta_opt.features.statistics import TINY, smooth
from meta_opt.mesh_axes import automatic_axes

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic iteration of Jordan et al., "Muon" (2024): singular values in [0.7, 1.2]."""
_LARGE = 1 << 15
"""Elements from which matrices are bfloat16, as their momentum is: half the memory and
time. Of 768 x 3072 with singular values 1/k the result's cosine to that in float32 is
0.9995, and both are as close to the orthogonal one (0.964)."""
_AT_ONCE = 1 << 23
"""Elements of large matrices that are worked on at a time."""


def newton_schulz(matrices: jax.Array, steps: int = 5) -> jax.Array:
    r"""Nearest semi-orthogonal matrices, approximately.

    With :math:`X_0 = M / \|M\|_F`, iterates :math:`X \leftarrow a X + (b A + c A^2) X`,
    :math:`A = X X^\top`, which moves all singular values towards one.

    Products are of the matrices' type, summed in float32.

    Args:
        matrices: float [U, rows, columns] with rows <= columns.
        steps: number of iterations.

    Returns:
        [U, rows, columns] in the same type, singular values roughly between 0.7 and
        1.2; zeros where the matrix is zero.
    """
    a, b, c = _COEFFICIENTS
    kind = matrices.dtype
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    wide = matrices.astype(jnp.float32)
    square = jnp.sum(jnp.square(wide), axis=(1, 2), keepdims=True)
    x = (wide * jax.lax.rsqrt(smooth(square) + TINY)).astype(kind)
    for _ in range(steps):
        gram = product("uik,ujk->uij", x, x)
        g = gram.astype(kind)
        polynomial = (b * gram + c * product("uij,ujk->uik", g, g)).astype(kind)
        moved = product("uij,ujk->uik", polynomial, x)
        x = (a * x.astype(jnp.float32) + moved).astype(kind)
    return x


def orthogonalise(
    matrices: Sequence[jax.Array], splits: Sequence[int], steps: int = 5
) -> list[jax.Array]:
    """Orthogonalises the units of several groups, all of one matrix shape in one batch.

    Under `jax.set_mesh` (and in a step of `meta_opt.finetuning`) the batch is divided
    over the mesh's devices.

    Args:
        matrices: arrays [U, *shape].
        splits: for each, how many axes of ``shape`` are rows.
        steps: Newton-Schulz iterations.

    Returns:
        Arrays shaped as ``matrices``, each unit scaled to RMS one; float32, or bfloat16
        for matrices of 2**15 elements and more.
    """
    flat, tall = [], []
    buckets: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
    for i, (x, split) in enumerate(zip(matrices, splits, strict=True)):
        rows = math.prod(x.shape[1 : 1 + split])
        m = x.astype(_kept(x)).reshape(x.shape[0], rows, -1)
        tall.append(m.shape[1] > m.shape[2])
        flat.append(jnp.swapaxes(m, 1, 2) if tall[-1] else m)
        buckets[flat[-1].shape[1:]].append(i)
    out: list = [None] * len(flat)
    for members in buckets.values():
        result = _batched([flat[i] for i in members], steps)
        offset = 0
        for i in members:
            part = result[offset : offset + matrices[i].shape[0]]
            offset += matrices[i].shape[0]
            if tall[i]:
                part = jnp.swapaxes(part, 1, 2)
            out[i] = part.reshape(matrices[i].shape)
    return out


def _kept(x: jax.Array) -> jnp.dtype:
    """The type in which units of ``x`` [U, ...] are exchanged and held."""
    large = math.prod(x.shape[1:]) >= _LARGE
    return jnp.dtype(jnp.bfloat16 if large else jnp.float32)


def _batched(matrices: list[jax.Array], steps: int) -> jax.Array:
    """Orthogonalised [U, rows, columns] of RMS one, joined, in the type given.

    Large ones a few at a time, and over all devices of the mesh in use, if any; U is
    then rounded up.
    """
    units = sum(len(x) for x in matrices)
    _, rows, columns = matrices[0].shape
    axes = automatic_axes()
    devices = math.prod(axes.values())
    # Of each device in one round: evenly, and no more than need be at once.
    share = math.ceil(units / devices)
    if rows * columns >= _LARGE:
        rounds = math.ceil(share / max(1, _AT_ONCE // (rows * columns)))
        share = math.ceil(share / rounds)
    rounds = math.ceil(units / (share * devices))
    missing = rounds * share * devices - units

    def one_round(x: jax.Array) -> jax.Array:
        if not axes:
            return _scaled(x, steps)
        by_unit = PartitionSpec(tuple(axes))
        return _spread(
            jax.shard_map(
                lambda x: _scaled(x, steps), in_specs=by_unit, out_specs=by_unit
            )(_spread(x, axes)),
            axes,
        )

    if missing:
        zeros = jnp.zeros((missing, rows, columns), matrices[0].dtype)
        matrices = [*matrices, zeros]
    joined = matrices[0] if len(matrices) == 1 else jnp.concatenate(matrices)
    if rounds == 1:
        return one_round(joined)

    def in_place(i: jax.Array, cut: jax.Array) -> jax.Array:
        done = one_round(jax.lax.dynamic_index_in_dim(cut, i, keepdims=False))
        return jax.lax.dynamic_update_index_in_dim(cut, done, i, axis=0)

    # Not lax.map: the compiler sets its output aside before the forward pass.
    cut = joined.reshape(rounds, -1, rows, columns)
    return jax.lax.fori_loop(0, rounds, in_place, cut).reshape(joined.shape)


def _spread(x: jax.Array, axes: dict[str, int]) -> jax.Array:
    """``x`` [U, rows, columns] divided by columns, the longer side, if they divide.

    So lie the parameters; units are then exchanged for columns, not gathered.
    """
    along = tuple(axes) if x.shape[2] % math.prod(axes.values()) == 0 else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(None, None, along))


def _scaled(matrices: jax.Array, steps: int) -> jax.Array:
    """Orthogonalised [U, rows, columns] of RMS one, in the type given."""
    result = newton_schulz(matrices, steps).astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(result), axis=(1, 2), keepdims=True)
    scaled = result * jax.lax.rsqrt(smooth(mean_square) + TINY)
    return scaled.astype(matrices.dtype)
