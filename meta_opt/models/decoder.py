"""Transformer decoder: RoPE, grouped-query attention, gated MLP, key-value cache.

Gemma's layers (Gemma Team 2024, arXiv:2403.08295): RoPE (Su et al. 2021,
arXiv:2104.09864), grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245),
GeGLU (Shazeer 2020, arXiv:2002.05202) and RMS norms (Zhang & Sennrich 2019,
arXiv:1910.07467). The caller provides the attention mask.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from meta_opt.models import layers
from meta_opt.models.layers import ACTIVATIONS, Numerics
from meta_opt.models.settings import (
    MAX_DEPTH,
    check_counts,
    check_divides,
    check_names,
    check_positive,
)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a `Decoder`.

    Attributes:
        vocab_size: K, size of the vocabulary.
        width: D, width of the representation.
        depth: L, number of layers.
        heads: H, number of query heads.
        key_value_heads: G, number of key-value heads; divides ``heads``.
        head_width: width of each head; even.
        mlp_width: hidden width of the MLP.
        activation: activation of the MLP's gate, of
            `meta_opt.models.layers.ACTIVATIONS`.
        norm_epsilon: epsilon of the RMS norms.
        rope_base: base of the rotary embeddings: longest wavelength in positions,
            divided by 2 pi.
    """

    vocab_size: int = 2048
    width: int = 64
    depth: int = 3
    heads: int = 4
    key_value_heads: int = 1
    head_width: int = 16
    mlp_width: int = 256
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-6
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        """Raises ValueError for inconsistent sizes and unknown names."""
        check_counts(self, "vocab_size", "width", "heads", "key_value_heads")
        check_counts(self, "head_width", "mlp_width")
        check_counts(self, "depth", most=MAX_DEPTH)
        check_positive(self, "norm_epsilon", "rope_base")
        check_divides(self, "key_value_heads", "heads")
        check_names(self, activation=tuple(ACTIVATIONS))
        if self.head_width % 2:
            raise ValueError(
                f"head_width={self.head_width} must be even, for rotary positions"
            )


class KeyValues(NamedTuple):
    """A key-value cache of C slots.

    Attributes:
        keys: [B, C, G, head_width], rotated; for a whole stack [L, B, C, G,
            head_width].
        values: of the same shape as ``keys``, not rotated.
    """

    keys: jax.Array
    values: jax.Array


def rotate(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    r"""Applies rotary position embeddings: rotates each pair of channels.

    With d channels, channel i < d/2 and channel i + d/2 are the coordinates of a point
    that is rotated by the angle :math:`p\,b^{-2i/d}`, so that inner products of rotated
    vectors depend only on the difference of their positions.

    Args:
        x: [B, S, H, d].
        positions: p, int [B, S].
        base: b, base of the wavelengths.

    Returns:
        [B, S, H, d], in the dtype of ``x``.

    >>> one = jnp.ones((1, 1, 1, 2))
    >>> rotate(one, jnp.array([[0]]), 10_000.0).ravel().tolist()
    [1.0, 1.0]
    """
    half = x.shape[-1] // 2
    turns = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, :, None, None] * turns[None, None, None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


class RMSNorm(nnx.Module):
    r""":math:`(1 + s)\, x / \sqrt{\mathrm{mean}(x^2) + \epsilon}` in float32."""

    def __init__(self, config: DecoderConfig, numerics: Numerics) -> None:
        self.epsilon = config.norm_epsilon
        dtype = jnp.dtype(numerics.param_dtype)
        self.scale = nnx.Param(jnp.zeros(config.width, dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D], of the type of ``x``."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        scale = self.scale[...].astype(jnp.float32)[None, None, :]
        return (y * (1 + scale)).astype(x.dtype)


class GroupedAttention(nnx.Module):
    """Grouped-query self-attention: groups of query heads share keys and values."""

    def __init__(
        self, config: DecoderConfig, numerics: Numerics, *, rngs: nnx.Rngs
    ) -> None:
        self.config = config
        linear = functools.partial(numerics.linear, rngs=rngs, use_bias=False)
        queries = config.heads * config.head_width
        pairs = config.key_value_heads * config.head_width
        self.query = linear(config.width, queries)
        self.key, self.value = (linear(config.width, pairs) for _ in range(2))
        self.out = linear(queries, config.width)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: KeyValues | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, KeyValues | None]:
        """Attends from ``x`` to itself, or to a cache that ``x`` is written to.

        Args:
            x: [B, S, D].
            positions: int [B, S].
            mask: bool [B, S, S], or [B, S, C] with a cache: whether a position (second
                axis) may attend to another (third).
            cache: key-value cache of C slots.
            slot: index of the cache slot where ``x`` begins.

        Returns:
            [B, S, D], and the new cache.
        """

        def split_heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], -1, self.config.head_width)

        def turned(y: jax.Array) -> jax.Array:
            return rotate(split_heads(y), positions, self.config.rope_base)

        read = KeyValues(turned(self.key(x)), split_heads(self.value(x)))
        if cache is not None:
            write = functools.partial(
                jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=1
            )
            read = cache = jax.tree.map(write, cache, read)
        mixed = jax.nn.dot_product_attention(
            turned(self.query(x)), read.keys, read.values, mask=mask[:, None]
        )
        return self.out(mixed.reshape(*x.shape[:-1], -1)), cache


class GatedMLP(nnx.Module):
    """``down(activation(gate(x)) * up(x))``."""

    def __init__(
        self, config: DecoderConfig, numerics: Numerics, *, rngs: nnx.Rngs
    ) -> None:
        self.activation = config.activation
        linear = functools.partial(numerics.linear, rngs=rngs, use_bias=False)
        self.gate, self.up = (linear(config.width, config.mlp_width) for _ in range(2))
        self.down = linear(config.mlp_width, config.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]."""
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class DecoderBlock(nnx.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(
        self, config: DecoderConfig, numerics: Numerics, *, rngs: nnx.Rngs
    ) -> None:
        self.attention_norm = RMSNorm(config, numerics)
        self.attention = GroupedAttention(config, numerics, rngs=rngs)
        self.mlp_norm = RMSNorm(config, numerics)
        self.mlp = GatedMLP(config, numerics, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: KeyValues | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, KeyValues | None]:
        """As `GroupedAttention.__call__`."""
        mixed, cache = self.attention(
            self.attention_norm(x), positions, mask, cache, slot
        )
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), cache


class Decoder(nnx.Module):
    """Token embeddings, a scanned stack of blocks, a norm, and tied output embeddings.

    Args:
        config: architecture.
        numerics: dtypes and rematerialisation.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(
        self, config: DecoderConfig, numerics: Numerics, *, rngs: nnx.Rngs
    ) -> None:
        self.config, self.numerics = config, numerics
        self.tokens = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_init=nnx.initializers.normal(config.width**-0.5),
            param_dtype=jnp.dtype(numerics.param_dtype),
            rngs=rngs,
        )
        self.layers = layers.stack(
            lambda rngs: DecoderBlock(config, numerics, rngs=rngs), config.depth, rngs
        )
        self.norm = RMSNorm(config, numerics)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embeds token ids, int [B, S], scaled by sqrt(D), as [B, S, D]."""
        x = self.tokens(tokens).astype(self.numerics.dtype)
        return x * jnp.asarray(math.sqrt(self.config.width), x.dtype)

    def empty_cache(self, batch: int, length: int) -> KeyValues:
        """An empty cache of C = ``length`` slots for B = ``batch`` rows."""
        config = self.config
        shape = (config.depth, batch, length, config.key_value_heads, config.head_width)
        zeros = jnp.zeros(shape, self.numerics.dtype)
        return KeyValues(zeros, zeros)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        cache: KeyValues | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, KeyValues | None]:
        """Applies the blocks and the final norm.

        Args:
            x: embeddings, [B, S, D].
            positions: int [B, S].
            mask: bool [B, S, S], or [B, S, C] with a cache, see `GroupedAttention`.
            cache: cache of `empty_cache` or of an earlier call.
            slot: index of the cache slot where ``x`` begins.

        Returns:
            Hidden states [B, S, D], and the new cache (None without one).
        """
        x, cache = layers.scan_stack(
            lambda block, x, own: block(x, positions, mask, own, slot),
            self.layers,
            x.astype(self.numerics.dtype),
            cache,
            remat=self.numerics.remat,
            unroll=not self.numerics.scan_layers,
        )
        return self.norm(x), cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Maps hidden states [B, S, D] to float32 next-token logits [B, S, K].

        For training, `meta_opt.losses.captioning` computes them in chunks.
        """
        embedding = self.tokens.embedding[...].astype(hidden.dtype)
        return jnp.einsum(
            "bsd,kd->bsk", hidden, embedding, preferred_element_type=jnp.float32
        )
