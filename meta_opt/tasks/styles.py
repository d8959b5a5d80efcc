"""Conventions that a model may follow: layout, initialisation, norms, containers.

A `Style` says how somebody writes models; the layers here honour it. They are written
for being vmapped over parameters: matrix products and elementwise operations alone.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from meta_opt.tasks.nets import conv3x3
from meta_opt.types import PyTree, check_name

_scaling = jax.nn.initializers.variance_scaling

INITIALIZERS: dict[str, Callable] = {
    "lecun_normal": _scaling(1.0, "fan_in", "normal"),
    "lecun_uniform": _scaling(1.0, "fan_in", "uniform"),
    "he_normal": _scaling(2.0, "fan_in", "normal"),
    "he_uniform": _scaling(2.0, "fan_in", "uniform"),
    "xavier_normal": _scaling(1.0, "fan_avg", "normal"),
    "xavier_uniform": _scaling(1.0, "fan_avg", "uniform"),
    # PyTorch's default: uniform in +-1/sqrt(fan_in), of variance 1/(3 fan_in).
    "torch": _scaling(1.0 / 3.0, "fan_in", "uniform"),
    "normal_02": jax.nn.initializers.normal(0.02),
    "truncated_02": jax.nn.initializers.truncated_normal(0.02),
    "orthogonal": jax.nn.initializers.orthogonal(),
}
"""Initialisers of a kernel [in, out]; ``torch`` draws biases as well."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
}
NORMS = ("layer", "rms", "group", "none")
_GROUPS = 4


@dataclasses.dataclass(frozen=True)
class Style:
    """How a model is written and initialised.

    Attributes:
        init: initialiser of kernels, a name in `INITIALIZERS`.
        gain: factor on every kernel.
        out_in: whether kernels are stored [out, in] and [out, in, 3, 3], not [in, out]
            and [3, 3, in, out].
        bias: whether layers (and layer norms) have biases.
        norm: ``layer``, ``rms``, ``group`` (of four groups, in convolutional nets) or
            ``none``.
        activation: a name in `ACTIVATIONS`.
        post_norm: whether the norm follows the residual sum.
        fused_qkv: whether queries, keys and values share one kernel.
        gated_mlp: whether a transformer's MLP is gated, as SwiGLU is.
        positions: ``learned``, ``sinusoidal`` or ``none``.
        pool: features that a classifier reads: ``mean``, ``cls`` (transformers) or
            ``flatten`` (convolutional nets).
        tied: whether a language model's head is its embedding.
        residual_scaling: whether the last layer of each residual branch starts smaller
            by ``sqrt(2 depth)``, as in GPT-2.
        zero_head: whether the last layer starts at zero.
        embedding_std: initial standard deviation of embeddings, positions and class
            tokens.
        dropout: rate after embeddings and in residual branches, during training.
        leaves: names of a layer's weight and bias; None for a tuple of both.
        blocks: container of repeated blocks: ``dict``, ``list`` or ``tuple``.
        parts: names of a model's encoder and head.
    """

    init: str = "lecun_normal"
    gain: float = 1.0
    out_in: bool = False
    bias: bool = True
    norm: str = "layer"
    activation: str = "gelu"
    post_norm: bool = False
    fused_qkv: bool = False
    gated_mlp: bool = False
    positions: str = "learned"
    pool: str = "mean"
    tied: bool = False
    residual_scaling: bool = False
    zero_head: bool = False
    embedding_std: float = 0.02
    dropout: float = 0.0
    leaves: tuple[str, str] | None = ("w", "b")
    blocks: str = "dict"
    parts: tuple[str, str] = ("body", "head")

    def __post_init__(self) -> None:
        check_name("init", self.init, INITIALIZERS)
        check_name("norm", self.norm, NORMS)
        check_name("activation", self.activation, ACTIVATIONS)
        check_name("positions", self.positions, ("learned", "sinusoidal", "none"))
        check_name("pool", self.pool, ("mean", "cls", "flatten"))
        check_name("blocks", self.blocks, ("dict", "list", "tuple"))

    def act(self, x: jax.Array) -> jax.Array:
        """Applies the activation."""
        return ACTIVATIONS[self.activation](x)


def along_last(vector: jax.Array, ndim: int) -> jax.Array:
    """A vector [D] with leading axes of length one, ``ndim`` axes in all."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


def _layer(style: Style, weight: jax.Array, bias: jax.Array | None) -> PyTree:
    if style.leaves is None:
        return (weight,) if bias is None else (weight, bias)
    named = {style.leaves[0]: weight}
    return named if bias is None else {**named, style.leaves[1]: bias}


def _weight_and_bias(
    style: Style, params: PyTree
) -> tuple[jax.Array, jax.Array | None]:
    if style.leaves is None:
        return params[0], params[1] if len(params) > 1 else None
    return params[style.leaves[0]], params.get(style.leaves[1])


def _kernel_and_bias(
    key: jax.Array, style: Style, inputs: int, outputs: int, scale: float
) -> tuple[jax.Array, jax.Array | None]:
    one, two = jax.random.split(key)
    kernel = INITIALIZERS[style.init](one, (inputs, outputs)) * (style.gain * scale)
    if not style.bias:
        return kernel, None
    if style.init != "torch":
        return kernel, jnp.zeros(outputs)
    limit = inputs**-0.5
    return kernel, jax.random.uniform(two, (outputs,), minval=-limit, maxval=limit)


def init_dense(
    key: jax.Array, style: Style, inputs: int, outputs: int, scale: float = 1.0
) -> PyTree:
    """A dense layer, its kernel multiplied by ``scale`` once more."""
    kernel, bias = _kernel_and_bias(key, style, inputs, outputs, scale)
    return _layer(style, kernel.T if style.out_in else kernel, bias)


def dense(style: Style, params: PyTree, x: jax.Array) -> jax.Array:
    """``x W + b`` over the last axis, in the layout of the style."""
    weight, bias = _weight_and_bias(style, params)
    y = x @ (weight.T if style.out_in else weight)
    return y if bias is None else y + along_last(bias, y.ndim)


def init_conv(
    key: jax.Array, style: Style, inputs: int, outputs: int, scale: float = 1.0
) -> PyTree:
    """A 3x3 convolution, its kernel initialised as that of a dense layer on patches."""
    flat, bias = _kernel_and_bias(key, style, 9 * inputs, outputs, scale)
    kernel = flat.reshape(3, 3, inputs, outputs)
    return _layer(style, kernel.transpose(3, 2, 0, 1) if style.out_in else kernel, bias)


def conv(style: Style, params: PyTree, x: jax.Array, stride: int) -> jax.Array:
    """A 3x3 convolution of [B, h, w, in] with zero padding."""
    weight, bias = _weight_and_bias(style, params)
    kernel = weight.transpose(2, 3, 1, 0) if style.out_in else weight
    y = conv3x3(kernel, x, stride)
    return y if bias is None else y + along_last(bias, y.ndim)


def init_norm(style: Style, width: int) -> PyTree:
    """Scales of one (and biases of zero); nothing where the style has no norm."""
    if style.norm == "none":
        return ()
    bias = style.bias and style.norm != "rms"
    return _layer(style, jnp.ones(width), jnp.zeros(width) if bias else None)


def norm(style: Style, params: PyTree, x: jax.Array) -> jax.Array:
    """Normalises the last axis; groups of channels over all places of [B, h, w, c]."""
    if style.norm == "none":
        return x
    if style.norm == "rms":
        y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    elif style.norm == "group" and x.ndim == 4:
        b, h, w, c = x.shape
        y = _standardized(x.reshape(b, h * w, _GROUPS, -1), (1, 3)).reshape(b, h, w, c)
    else:
        y = _standardized(x, (-1,))
    scale, bias = _weight_and_bias(style, params)
    y = y * along_last(scale, y.ndim)
    return y if bias is None else y + along_last(bias, y.ndim)


def _standardized(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    centred = x - jnp.mean(x, axis=axes, keepdims=True)
    variance = jnp.mean(centred * centred, axis=axes, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5)


def init_table(key: jax.Array, style: Style, rows: int, width: int) -> jax.Array:
    """Embeddings [rows, width], normal of the style's standard deviation."""
    return style.embedding_std * jax.random.normal(key, (rows, width))


def dropout(style: Style, key: jax.Array | None, index: int, x: jax.Array) -> jax.Array:
    """Drops elements at the style's rate; with no key, none.

    Args:
        style: says the rate.
        key: random key of the training step; None for evaluation.
        index: index of the place in the model.
        x: any array.
    """
    if key is None or style.dropout == 0:
        return x
    kept = jax.random.bernoulli(
        jax.random.fold_in(key, index), 1 - style.dropout, x.shape
    )
    return jnp.where(kept, x / (1 - style.dropout), 0.0)


def in_blocks(style: Style, blocks: Sequence[PyTree]) -> PyTree:
    """Puts repeated blocks, ten at most, in the container of the style."""
    if style.blocks == "dict":
        return {f"{i}": block for i, block in enumerate(blocks)}
    return list(blocks) if style.blocks == "list" else tuple(blocks)


def each_block(params: PyTree) -> list[PyTree]:
    """The blocks in order, from any container of `in_blocks`."""
    if isinstance(params, dict):
        return [params[name] for name in sorted(params)]
    return list(params)
