"""Layers with configurable conventions: layout, initialisation, norms, containers.

A `Style` describes the conventions of a code base, which the layers here follow. They
are meant to be vmapped over parameters, and use only matrix products and elementwise
operations.
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
    # PyTorch's default: uniform in +-1/sqrt(fan_in), with variance 1/(3 fan_in).
    "torch": _scaling(1.0 / 3.0, "fan_in", "uniform"),
    "normal_02": jax.nn.initializers.normal(0.02),
    "truncated_02": jax.nn.initializers.truncated_normal(0.02),
    "orthogonal": jax.nn.initializers.orthogonal(),
}
"""Initialisers of kernels [in, out]; with ``torch`` biases are random too."""

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
    """Conventions of model code and initialisation.

    Attributes:
        init: initialiser of kernels, a key of `INITIALIZERS`.
        gain: factor on every initial kernel.
        out_in: whether kernels are stored as [out, in] and [out, in, 3, 3] instead of
            [in, out] and [3, 3, in, out].
        bias: whether layers (and layer norms) have biases.
        norm: ``layer``, ``rms``, ``group`` (four groups, in convolutional networks) or
            ``none``.
        activation: activation function, a key of `ACTIVATIONS`.
        post_norm: whether the norm follows the residual sum.
        fused_qkv: whether queries, keys and values share one kernel.
        gated_mlp: whether the MLPs of a transformer are gated, as in SwiGLU.
        positions: position embeddings: ``learned``, ``sinusoidal`` or ``none``.
        pool: pooling for classifiers: ``mean``, ``cls`` (transformers) or ``flatten``
            (convolutional networks).
        tied: whether the head of a language model is tied to its embedding.
        residual_scaling: whether the initial last layer of each residual branch is
            divided by ``sqrt(2 depth)``, as in GPT-2.
        zero_head: whether the head is initialised with zeros.
        embedding_std: initial standard deviation of embeddings, positions and class
            tokens.
        dropout: dropout rate after embeddings and in residual branches.
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
        """Applies the activation function."""
        return ACTIVATIONS[self.activation](x)


def along_last(vector: jax.Array, ndim: int) -> jax.Array:
    """Reshapes a vector [D] to [1, ..., 1, D] with ``ndim`` axes."""
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
    """Initialises a dense layer; its kernel is multiplied by ``scale``."""
    kernel, bias = _kernel_and_bias(key, style, inputs, outputs, scale)
    return _layer(style, kernel.T if style.out_in else kernel, bias)


def dense(style: Style, params: PyTree, x: jax.Array) -> jax.Array:
    """Returns ``x W + b`` over the last axis, for the kernel layout of the style."""
    weight, bias = _weight_and_bias(style, params)
    y = x @ (weight.T if style.out_in else weight)
    return y if bias is None else y + along_last(bias, y.ndim)


def init_conv(
    key: jax.Array, style: Style, inputs: int, outputs: int, scale: float = 1.0
) -> PyTree:
    """Initialises a 3x3 convolution like a dense layer on patches."""
    flat, bias = _kernel_and_bias(key, style, 9 * inputs, outputs, scale)
    kernel = flat.reshape(3, 3, inputs, outputs)
    return _layer(style, kernel.transpose(3, 2, 0, 1) if style.out_in else kernel, bias)


def conv(style: Style, params: PyTree, x: jax.Array, stride: int) -> jax.Array:
    """Applies a 3x3 convolution with zero padding to [B, h, w, in]."""
    weight, bias = _weight_and_bias(style, params)
    kernel = weight.transpose(2, 3, 1, 0) if style.out_in else weight
    y = conv3x3(kernel, x, stride)
    return y if bias is None else y + along_last(bias, y.ndim)


def init_norm(style: Style, width: int) -> PyTree:
    """Initialises scales with 1 and biases with 0; empty if the style has no norm."""
    if style.norm == "none":
        return ()
    bias = style.bias and style.norm != "rms"
    return _layer(style, jnp.ones(width), jnp.zeros(width) if bias else None)


def norm(style: Style, params: PyTree, x: jax.Array) -> jax.Array:
    """Normalises the last axis; group norm also over all positions of [B, h, w, c]."""
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
    """Initialises embeddings [rows, width] with the style's standard deviation."""
    return style.embedding_std * jax.random.normal(key, (rows, width))


def dropout(style: Style, key: jax.Array | None, index: int, x: jax.Array) -> jax.Array:
    """Applies dropout at the style's rate.

    Args:
        style: style with the dropout rate.
        key: random key of the training step; None for evaluation, without dropout.
        index: index of the dropout layer in the model, folded into the key.
        x: any array.
    """
    if key is None or style.dropout == 0:
        return x
    kept = jax.random.bernoulli(
        jax.random.fold_in(key, index), 1 - style.dropout, x.shape
    )
    return jnp.where(kept, x / (1 - style.dropout), 0.0)


def in_blocks(style: Style, blocks: Sequence[PyTree]) -> PyTree:
    """Puts up to ten repeated blocks into the container of the style."""
    if style.blocks == "dict":
        return {f"{i}": block for i, block in enumerate(blocks)}
    return list(blocks) if style.blocks == "list" else tuple(blocks)


def each_block(params: PyTree) -> list[PyTree]:
    """Returns the blocks in order, from any container of `in_blocks`."""
    if isinstance(params, dict):
        return [params[name] for name in sorted(params)]
    return list(params)
