"""Transformer layers: attention, MLP, the pre-LN block, and a scanned stack of blocks.

Shapes use the letters of `meta_opt.types`: B batch, S sequence (patches or tokens),
H heads, D width, L layers.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def flat_dot_general(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **kwargs: Any
) -> jax.Array:
    """Multiplies ``x`` [..., D] by ``kernel`` [D, E] with the leading axes flattened.

    The same product as `jax.lax.dot_general` for `nnx.Linear`, whose weight gradient
    contracts several axes otherwise: three times slower in XLA on CPU.
    """
    del dimension_numbers  # Always the last axis of x with the first of the kernel.
    flat = x.reshape(-1, x.shape[-1])
    return jnp.matmul(flat, kernel, **kwargs).reshape(*x.shape[:-1], -1)


Linear = functools.partial(nnx.Linear, dot_general=flat_dot_general)


class Attention(nnx.Module):
    """Multi-head attention with plain [D, D] kernels."""

    def __init__(
        self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        linear = functools.partial(Linear, width, width, dtype=dtype, rngs=rngs)
        self.heads = heads
        self.query, self.key, self.value = linear(), linear(), linear()
        self.out = linear()

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from ``x`` [B, S, D] to ``context`` [B, C, D] (``x`` itself if None).

        Args:
            x: the queries' side.
            context: the keys' and values' side.
            mask: bool [B, C], false where ``context`` is not to be read.

        Returns:
            [B, S, D].
        """
        context = x if context is None else context

        def split_heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], self.heads, -1)

        mixed = jax.nn.dot_product_attention(
            split_heads(self.query(x)),
            split_heads(self.key(context)),
            split_heads(self.value(context)),
            mask=None if mask is None else mask[:, None, None, :],
        )
        return self.out(mixed.reshape(x.shape))


class MLP(nnx.Module):
    """Two linear layers with a GELU between, width ``ratio * D`` inside."""

    def __init__(
        self, width: int, ratio: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.up = Linear(width, ratio * width, dtype=dtype, rngs=rngs)
        self.down = Linear(ratio * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, S, D] to [B, S, D]."""
        return self.down(jax.nn.gelu(self.up(x)))


class Block(nnx.Module):
    """Pre-LN block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(
        self, width: int, heads: int, ratio: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.attention_norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, ratio, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, S, D] to [B, S, D]; ``mask`` bool [B, S] is false on padding."""
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.mlp(self.mlp_norm(x))


class AttentionPool(nnx.Module):
    """Pools a sequence by attention from one learned query (MAP head of big_vision)."""

    def __init__(
        self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        init = nnx.initializers.normal(width**-0.5)
        self.probe = nnx.Param(init(rngs.params(), (1, 1, width)))
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, S, D] to [B, D]; ``mask`` bool [B, S] is false on padding."""
        probe = jnp.broadcast_to(self.probe[...], (x.shape[0], 1, x.shape[-1]))
        return self.attention(probe.astype(x.dtype), x, mask)[:, 0]


def mean_pool(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean of ``x`` [B, S, D] over S, where ``mask`` bool [B, S] is true: [B, D].

    A row with nothing to average gives zeros.
    """
    if mask is None:
        return x.mean(axis=1)
    weights = mask.astype(x.dtype)[:, :, None]
    return (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)


def stack(create: Callable[[nnx.Rngs], M], depth: int, rngs: nnx.Rngs) -> M:
    """Creates ``depth`` modules as one, whose leaves have a leading layer axis L."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create_all(rngs: nnx.Rngs) -> M:
        return create(rngs)

    return create_all(rngs)


def apply_stack(
    layers: Block,
    x: jax.Array,
    mask: jax.Array | None = None,
    *,
    remat: bool = False,
    unroll: bool = False,
) -> jax.Array:
    """Applies the layers that `stack` made, one after the other.

    Args:
        layers: a stacked module, leaves [L, ...].
        x: [B, S, D].
        mask: bool [B, S], false on padding.
        remat: recompute each layer's activations in the backward pass.
        unroll: write the loop out: longer to compile, sometimes faster to run.

    Returns:
        [B, S, D].
    """
    graphdef, params = nnx.split(layers)

    def body(x: jax.Array, layer: nnx.State) -> tuple[jax.Array, None]:
        return nnx.merge(graphdef, layer)(x, mask), None

    if remat:
        body = jax.checkpoint(body, prevent_cse=unroll)
    return jax.lax.scan(body, x, params, unroll=unroll)[0]
