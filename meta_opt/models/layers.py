"""Transformer layers: attention, MLP, the pre-LN block, and scanned stacks of layers.

Shapes use the letters of `meta_opt.types`: B batch, S sequence (patches or tokens),
H heads, D width, L layers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from meta_opt.mesh_axes import shard_batch
from meta_opt.models.settings import check_names

M = TypeVar("M", bound=nnx.Module)

MAX_LOGIT_SCALE = 100.0
"""Upper bound of the logit scale of a contrastive loss, as in CLIP."""


def flat_dot_general(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **kwargs: Any
) -> jax.Array:
    """Multiplies ``x`` [..., D] by ``kernel`` [D, E] with the leading axes flattened.

    Replaces `jax.lax.dot_general` in `nnx.Linear`, whose weight gradient would contract
    several axes, which is three times slower in XLA on CPU.
    """
    del (
        dimension_numbers
    )  # Always contracts the last axis of x with the first of the kernel.
    flat = x.reshape(-1, x.shape[-1])
    return jnp.matmul(flat, kernel, **kwargs).reshape(*x.shape[:-1], -1)


class Linear(nnx.Linear):
    """`nnx.Linear` whose kernel may be int8 with one scale per output.

    See `meta_opt.models.int8`; without ``kernel_scale`` it is the plain layer.
    """

    kernel_scale: nnx.Param

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"dot_general": flat_dot_general, **kwargs})

    def full_kernel(self) -> jax.Array:
        """The dequantised kernel, [in, out] or [L, in, out]."""
        if not hasattr(self, "kernel_scale"):
            return self.kernel[...]
        scale = self.kernel_scale[...]
        return self.kernel[...].astype(scale.dtype) * scale[..., None, :]

    def restore_kernel(self) -> None:
        """Dequantises an int8 kernel, in place."""
        if hasattr(self, "kernel_scale"):
            self.kernel = nnx.Param(self.full_kernel().astype(self.param_dtype))
            del self.kernel_scale

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        if not hasattr(self, "kernel_scale"):
            return super().__call__(inputs, out_sharding)
        bias = None if self.bias is None else self.bias[...]
        # The scale is per output, so it can be applied after the product.
        x, kernel, scale, bias = self.promote_dtype(
            (inputs, self.kernel[...], self.kernel_scale[...], bias), dtype=self.dtype
        )
        y = self.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
        y = y * scale.reshape((1,) * (y.ndim - 1) + (-1,))
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def quick_gelu(x: jax.Array) -> jax.Array:
    """``x sigmoid(1.702 x)``, the approximation that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": quick_gelu,
}
"""Non-linearities of the MLP by name."""


REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass recomputes of a layer: nothing; all but the matrix products
with kernels; everything."""


@dataclasses.dataclass(frozen=True)
class Numerics:
    """Dtypes of a model, and rematerialisation and unrolling of its layer stacks.

    Attributes:
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        remat: what the backward pass recomputes of each layer, see `REMAT`: everything
            (``full``), all but the matrix products with kernels (``dots``), or nothing
            (``none``). Recomputation saves memory, and on CPU also time, since a scan
            copies what it keeps.
        scan_layers: whether to scan over layers; if false, the loop is unrolled, which
            takes longer to compile and is sometimes faster. Parameters are stacked in
            any case.
    """

    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "full"
    scan_layers: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for unknown names."""
        types = ("float32", "bfloat16")
        check_names(self, dtype=types, param_dtype=types, remat=tuple(REMAT))

    def linear(
        self, inputs: int, outputs: int, rngs: nnx.Rngs, use_bias: bool = True
    ) -> Linear:
        """Creates a linear layer with these dtypes."""
        return Linear(
            inputs,
            outputs,
            use_bias=use_bias,
            dtype=jnp.dtype(self.dtype),
            param_dtype=jnp.dtype(self.param_dtype),
            rngs=rngs,
        )


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Shape and numerics of a transformer block.

    Attributes:
        width: D, width of the representation.
        heads: H, number of attention heads; divides ``width``.
        mlp_width: hidden width of the MLP.
        activation: one of `ACTIVATIONS`.
        norm_epsilon: epsilon of the layer norms.
        causal: whether attention is causal.
        numerics: dtypes and rematerialisation.
    """

    width: int
    heads: int
    mlp_width: int
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-6
    causal: bool = False
    numerics: Numerics = Numerics()

    def norm(self, rngs: nnx.Rngs) -> nnx.LayerNorm:
        """Creates a layer norm with these dtypes."""
        return nnx.LayerNorm(
            self.width,
            epsilon=self.norm_epsilon,
            dtype=jnp.dtype(self.numerics.dtype),
            param_dtype=jnp.dtype(self.numerics.param_dtype),
            rngs=rngs,
        )


class Attention(nnx.Module):
    """Multi-head attention with plain [D, D] kernels."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs) -> None:
        width = config.width
        linear = functools.partial(config.numerics.linear, width, width, rngs)
        self.heads, self.causal = config.heads, config.causal
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
            x: input of the queries.
            context: input of the keys and values.
            mask: bool [B, C], false where ``context`` is masked.

        Returns:
            [B, S, D].
        """
        causal = self.causal and context is None
        context = x if context is None else context

        def split_heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], self.heads, -1)

        mixed = jax.nn.dot_product_attention(
            split_heads(self.query(x)),
            split_heads(self.key(context)),
            split_heads(self.value(context)),
            mask=None if mask is None else mask[:, None, None, :],
            is_causal=causal,
        )
        return self.out(mixed.reshape(x.shape))


class MLP(nnx.Module):
    """Two linear layers with a non-linearity in between."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs) -> None:
        self.activation = config.activation
        self.up = config.numerics.linear(config.width, config.mlp_width, rngs)
        self.down = config.numerics.linear(config.mlp_width, config.width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]."""
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nnx.Module):
    """Pre-LN block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = config.norm(rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = config.norm(rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]; ``mask`` bool [B, S] is false at padding."""
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.mlp(self.mlp_norm(x))


class AttentionPool(nnx.Module):
    """Pools a sequence by attention from one learned query, then an MLP.

    The MAP head of big_vision and SigLIP (Zhai et al. 2022, arXiv:2106.04560).
    """

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.normal(config.width**-0.5)
        shape, dtype = (1, 1, config.width), jnp.dtype(config.numerics.param_dtype)
        self.probe = nnx.Param(init(rngs.params(), shape, dtype))
        self.attention = Attention(config, rngs=rngs)
        self.norm = config.norm(rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps [B, S, D] to [B, D]; ``mask`` bool [B, S] is false at padding."""
        probe = jnp.broadcast_to(self.probe[...], (x.shape[0], 1, x.shape[-1]))
        z = self.attention(probe.astype(x.dtype), x, mask)
        return (z + self.mlp(self.norm(z)))[:, 0]


def mean_pool(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean of ``x`` [B, S, D] over S, where ``mask`` bool [B, S] is true: [B, D].

    Rows that are entirely masked are zero.
    """
    if mask is None:
        return x.mean(axis=1)
    weights = mask.astype(x.dtype)[:, :, None]
    return (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1)


def l2_normalize(x: jax.Array) -> jax.Array:
    """Scales the rows of [..., D] to unit length; zero rows stay 0, with a gradient."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def logit_scale(log_scale: jax.Array) -> jax.Array:
    """Returns ``min(exp(log_scale), MAX_LOGIT_SCALE)``, an inverse temperature."""
    return jnp.exp(jnp.minimum(log_scale, math.log(MAX_LOGIT_SCALE)))


def stack(create: Callable[[nnx.Rngs], M], depth: int, rngs: nnx.Rngs) -> M:
    """Creates ``depth`` modules as one, whose leaves have a leading layer axis L."""

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create_all(rngs: nnx.Rngs) -> M:
        return create(rngs)

    return create_all(rngs)


def cut_stack(layers: M, at: int) -> tuple[M, M]:
    """Splits a stack [L, ...] into layers 0 to at - 1 and layers at to L - 1."""
    graphdef, state = nnx.split(layers)

    def part(which: slice) -> M:
        return nnx.merge(graphdef, jax.tree.map(lambda x: x[which], state))

    return part(slice(at)), part(slice(at, None))


def scan_stack(
    step: Callable[[M, jax.Array, Any], tuple[jax.Array, Any]],
    layers: M,
    x: jax.Array,
    each: Any = None,
    *,
    remat: str = "none",
    unroll: bool = False,
) -> tuple[jax.Array, Any]:
    """Applies the layers of a `stack` to ``x`` in sequence.

    Args:
        step: function ``(layer, x, own) -> (x, result)``, where ``own`` is the layer's
            slice of ``each``.
        layers: a stacked module, leaves [L, ...].
        x: [B, S, D].
        each: pytree of [L, ...] with inputs per layer, such as caches.
        remat: one of `REMAT`.
        unroll: whether to unroll the loop.

    Returns:
        [B, S, D], and the results with a leading layer axis.
    """
    graphdef, params = nnx.split(layers)

    def body(x: jax.Array, layer: tuple[nnx.State, Any]) -> tuple[jax.Array, Any]:
        x, result = step(nnx.merge(graphdef, layer[0]), x, layer[1])
        return shard_batch(x), result

    if remat != "none":
        body = jax.checkpoint(body, prevent_cse=unroll, policy=REMAT[remat])
    return jax.lax.scan(body, shard_batch(x), (params, each), unroll=unroll)


def apply_stack(
    layers: Block, x: jax.Array, mask: jax.Array | None = None, **options: Any
) -> jax.Array:
    """Applies a stack of blocks.

    Args:
        layers: a `stack` of `Block`, with leaves [L, ...].
        x: [B, S, D].
        mask: bool [B, S], false at padding.
        **options: ``remat`` and ``unroll`` of `scan_stack`.

    Returns:
        [B, S, D].
    """
    return scan_stack(lambda block, x, _: (block(x, mask), None), layers, x, **options)[
        0
    ]
