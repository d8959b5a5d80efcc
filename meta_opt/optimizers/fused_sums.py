"""A Pallas kernel for the statistics of factored steps, in one pass over the arrays.

The sums of squares by row and by column and the product with momentum read 6 bytes per
element. On GPU, XLA does not fuse reductions along different axes and reads the
gradient twice, 10 bytes; on TPU, XLA already fuses them into one pass.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

_LEAST_SIDE = 32
"""Smallest side of a block; sides are powers of two that divide those of the matrix."""
_SIDES = {"gpu": (64, 128), "tpu": (256, 1024)}
"""Largest rows and columns of a block, limited by registers (GPU) and vector memory
(TPU)."""


class FactoredSums(NamedTuple):
    """Means of squares by row [u, R] and by column [u, C], and the product [u]."""

    row: jax.Array
    column: jax.Array
    product: jax.Array


def factored_sums(
    grads: jax.Array, momentum: jax.Array, interpret: bool = False
) -> FactoredSums:
    """Measures a chunk of matrices, by the kernel on a GPU or TPU.

    Elsewhere, and for sides that no block divides, XLA does it.

    Args:
        grads: [u, R, C], float32 or bfloat16, on one device.
        momentum: [u, R, C].
        interpret: run the kernel by Pallas's interpreter, on any device.

    Example:
        >>> g = jnp.arange(8.0).reshape(1, 2, 4)
        >>> factored_sums(g, g).row
        Array([[ 3.5, 31.5]], dtype=float32)
    """
    if interpret:
        return _by_kernel(grads, momentum, "tpu", interpret=True)
    return jax.lax.platform_dependent(
        grads,
        momentum,
        cuda=functools.partial(_by_kernel, platform="gpu"),
        tpu=functools.partial(_by_kernel, platform="tpu"),
        default=_by_xla,
    )


def _by_xla(grads: jax.Array, momentum: jax.Array) -> FactoredSums:
    grads, momentum = grads.astype(jnp.float32), momentum.astype(jnp.float32)
    square = jnp.square(grads)
    return FactoredSums(
        jnp.mean(square, axis=2),
        jnp.mean(square, axis=1),
        jnp.sum(grads * momentum, axis=(1, 2)),
    )


def _by_kernel(
    grads: jax.Array, momentum: jax.Array, platform: str, interpret: bool = False
) -> FactoredSums:
    units, rows, columns = grads.shape
    high, wide = (
        _divisor(n, most)
        for n, most in zip((rows, columns), _SIDES[platform], strict=True)
    )
    # A TPU's vectors have 128 lanes.
    if min(high, wide) < (_LEAST_SIDE if platform == "gpu" else 128):
        return _by_xla(grads, momentum)
    down, across = rows // high, columns // wide
    block = pl.BlockSpec((1, high, wide), lambda u, i, j: (u, i, j))
    by_row = pl.BlockSpec((1, 1, 1, high), lambda u, i, j: (u, j, 0, i))
    by_column = pl.BlockSpec((1, 1, 1, wide), lambda u, i, j: (u, i, 0, j))
    # Every program writes the sums of its own block, without synchronisation.
    row, column, product = pl.pallas_call(
        _sum_block,
        out_shape=(
            jax.ShapeDtypeStruct((units, across, 1, rows), jnp.float32),
            jax.ShapeDtypeStruct((units, down, 1, columns), jnp.float32),
            jax.ShapeDtypeStruct((units, across, 1, rows), jnp.float32),
        ),
        grid=(units, down, across),
        in_specs=[block, block],
        out_specs=(by_row, by_column, by_row),
        compiler_params=_compiler_params(platform),
        interpret=interpret,
        name="factored_sums",
    )(grads, momentum)
    return FactoredSums(
        jnp.sum(row, axis=(1, 2)) / columns,
        jnp.sum(column, axis=(1, 2)) / rows,
        jnp.sum(product, axis=(1, 2, 3)),
    )


def _sum_block(
    grad_ref: Any, momentum_ref: Any, row_ref: Any, column_ref: Any, product_ref: Any
) -> None:
    grad = grad_ref[0].astype(jnp.float32)
    square = grad * grad
    row_ref[0, 0, 0, :] = jnp.sum(square, axis=1)
    column_ref[0, 0, 0, :] = jnp.sum(square, axis=0)
    momentum = momentum_ref[0].astype(jnp.float32)
    product_ref[0, 0, 0, :] = jnp.sum(grad * momentum, axis=1)


def _divisor(size: int, most: int) -> int:
    """The largest power of two that divides ``size``, at most ``most``."""
    return min(size & -size, most)


def _compiler_params(platform: str) -> Any:
    if platform != "gpu":
        return None
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=4)
