"""Orthogonalisation of matrices by Newton-Schulz, in batches of one shape."""

import collections
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_opt.features.statistics import TINY, smooth

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic iteration of Jordan et al., "Muon" (2024): singular values in [0.7, 1.2]."""


def newton_schulz(matrices: jax.Array, steps: int = 5) -> jax.Array:
    r"""Nearest semi-orthogonal matrices, approximately.

    With :math:`X_0 = M / \|M\|_F`, iterates :math:`X \leftarrow a X + (b A + c A^2) X`,
    :math:`A = X X^\top`, which moves all singular values towards one.

    Args:
        matrices: float [U, rows, columns] with rows <= columns.
        steps: number of iterations.

    Returns:
        float [U, rows, columns], singular values roughly between 0.7 and 1.2; zeros
        where the matrix is zero.
    """
    a, b, c = _COEFFICIENTS
    square = jnp.sum(jnp.square(matrices), axis=(1, 2), keepdims=True)
    x = matrices * jax.lax.rsqrt(smooth(square) + TINY)
    for _ in range(steps):
        gram = jnp.einsum("uik,ujk->uij", x, x)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def orthogonalise(
    matrices: Sequence[jax.Array], splits: Sequence[int], steps: int = 5
) -> list[jax.Array]:
    """Orthogonalises the units of several groups, all of one matrix shape in one batch.

    Args:
        matrices: arrays [U, *shape].
        splits: for each, how many axes of ``shape`` are rows.
        steps: Newton-Schulz iterations.

    Returns:
        Arrays shaped as ``matrices``, float32, each unit scaled to RMS one.
    """
    flat, tall = [], []
    buckets: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
    for i, (x, split) in enumerate(zip(matrices, splits, strict=True)):
        rows = math.prod(x.shape[1 : 1 + split])
        m = x.astype(jnp.float32).reshape(x.shape[0], rows, -1)
        tall.append(m.shape[1] > m.shape[2])
        flat.append(jnp.swapaxes(m, 1, 2) if tall[-1] else m)
        buckets[flat[-1].shape[1:]].append(i)
    out: list = [None] * len(flat)
    for members in buckets.values():
        batch = [flat[i] for i in members]
        joined = batch[0] if len(batch) == 1 else jnp.concatenate(batch)
        result = newton_schulz(joined, steps)
        mean_square = jnp.mean(jnp.square(result), axis=(1, 2), keepdims=True)
        result = result * jax.lax.rsqrt(smooth(mean_square) + TINY)
        offset = 0
        for i in members:
            part = result[offset : offset + matrices[i].shape[0]]
            offset += matrices[i].shape[0]
            if tall[i]:
                part = jnp.swapaxes(part, 1, 2)
            out[i] = part.reshape(matrices[i].shape)
    return out
