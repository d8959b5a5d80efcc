"""Small networks as pure functions of a parameter dict.

MLP, convolutional network, transformer (encoder or causal), token embedding and LoRA.
They are meant to be vmapped over parameters: convolutions are matrix products over
patches, since grouped convolutions are slow on CPU.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_opt.types import PyTree


def _kernel(
    key: jax.Array, shape: Sequence[int], inputs: int, gain: float
) -> jax.Array:
    return jax.random.normal(key, tuple(shape)) * gain / jnp.sqrt(inputs)


def init_dense(
    key: jax.Array, inputs: int, outputs: int, gain: float = 1.0, bias: bool = True
) -> PyTree:
    """Initialises a kernel with variance ``gain^2 / inputs`` and a zero bias."""
    kernel = _kernel(key, (inputs, outputs), inputs, gain)
    return (
        {"kernel": kernel, "bias": jnp.zeros(outputs)} if bias else {"kernel": kernel}
    )


def dense(params: PyTree, x: jax.Array) -> jax.Array:
    """Returns ``x W + b`` over the last axis, plus the LoRA branch if there is one."""
    y = x @ params["kernel"]
    if "lora_a" in params:
        y += 2.0 * ((x @ params["lora_a"]) @ params["lora_b"])
    if "bias" not in params:
        return y
    return y + params["bias"].reshape((1,) * (y.ndim - 1) + (-1,))


def _norm_init(width: int) -> PyTree:
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def _norm(params: PyTree, x: jax.Array) -> jax.Array:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    spread = jax.lax.rsqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-5)
    shape = (1,) * (x.ndim - 1) + (-1,)
    return (x - mean) * spread * params["scale"].reshape(shape) + params[
        "bias"
    ].reshape(shape)


def init_mlp(key: jax.Array, widths: Sequence[int]) -> PyTree:
    """Initialises a ReLU MLP with layers ``0 .. n-1``; the last one is ``head``."""
    keys = jax.random.split(key, len(widths) - 1)
    pairs = list(itertools.pairwise(widths))
    names = [*(str(i) for i in range(len(pairs) - 1)), "head"]
    return {
        name: init_dense(k, a, b, gain=1.4)
        for name, k, (a, b) in zip(names, keys, pairs, strict=True)
    }


def mlp(params: PyTree, x: jax.Array) -> jax.Array:
    """Applies the MLP of `init_mlp` to [B, inputs]."""
    for i in range(len(params) - 1):
        x = jax.nn.relu(dense(params[str(i)], x))
    return dense(params["head"], x)


def init_convnet(key: jax.Array, channels: int, widths: Sequence[int]) -> PyTree:
    """Initialises 3x3 convolutions, each with a group norm of one group.

    All but the first have stride 2.
    """
    blocks = {}
    for i, width in enumerate(widths):
        key, here = jax.random.split(key)
        blocks[f"conv{i}"] = {
            "kernel": _kernel(here, (3, 3, channels, width), 9 * channels, 1.4),
            "bias": jnp.zeros(width),
        }
        blocks[f"norm{i}"] = _norm_init(width)
        channels = width
    return blocks


def convnet(params: PyTree, images: jax.Array) -> jax.Array:
    """Encodes [B, h, w, c] to the mean over positions, [B, D]."""
    x = images
    for i in range(len(params) // 2):
        p = params[f"conv{i}"]
        x = conv3x3(p["kernel"], x, stride=1 if i == 0 else 2)
        x = x + p["bias"].reshape(1, 1, 1, -1)
        x = jax.nn.relu(_norm(params[f"norm{i}"], x))
    return jnp.mean(x, axis=(1, 2))


def conv3x3(kernel: jax.Array, x: jax.Array, stride: int) -> jax.Array:
    """A convolution as a product of patches [B, h, w, 9 c] with the flat kernel."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(3)
        for j in range(3)
    ]
    return jnp.concatenate(shifts, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def init_embedding(key: jax.Array, vocabulary: int, width: int) -> PyTree:
    """Initialises a table of token embeddings with RMS 0.1."""
    return {"embedding": 0.1 * jax.random.normal(key, (vocabulary, width))}


def embed(params: PyTree, tokens: jax.Array) -> jax.Array:
    """Embeds token ids: [..., L] to [..., L, D]."""
    return params["embedding"][tokens]


def init_transformer(
    key: jax.Array, inputs: int, positions: int, width: int, depth: int
) -> PyTree:
    """Initialises a pre-LN transformer on [B, positions, inputs].

    Keys have no bias: it would not change the softmax, so its gradient would consist of
    rounding errors.
    """
    first, where, *keys = jax.random.split(key, 2 + depth)
    blocks = {}
    for i, block_key in enumerate(keys):
        q, k, v, o, u, d = jax.random.split(block_key, 6)
        blocks[str(i)] = {
            "norm1": _norm_init(width),
            "query": init_dense(q, width, width),
            "key": init_dense(k, width, width, bias=False),
            "value": init_dense(v, width, width),
            "out": init_dense(o, width, width),
            "norm2": _norm_init(width),
            "up": init_dense(u, width, 4 * width),
            "down": init_dense(d, 4 * width, width),
        }
    return {
        "patches": init_dense(first, inputs, width),
        "positions": 0.02 * jax.random.normal(where, (positions, width)),
        "layers": blocks,
        "norm": _norm_init(width),
    }


def transformer(
    params: PyTree,
    x: jax.Array,
    heads: int = 2,
    mask: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array:
    """Encodes [B, P, inputs] to [B, P, D].

    Args:
        params: parameters from `init_transformer`.
        x: input tokens.
        heads: number of attention heads.
        mask: [B, P], zero for padding; None for no padding.
        causal: whether attention is causal.

    Returns:
        The tokens after the final norm.
    """
    x = dense(params["patches"], x) + params["positions"][None, : x.shape[1]]
    batch, length, width = x.shape
    seen = jnp.ones((1, 1, 1, length), bool)
    if mask is not None:
        seen = (mask != 0)[:, None, None, :]
    if causal:
        seen = seen & jnp.tril(jnp.ones((length, length), bool))[None, None]
    for i in range(len(params["layers"])):
        p = params["layers"][str(i)]
        y = _norm(p["norm1"], x)
        q, k, v = (
            dense(p[n], y).reshape(batch, length, heads, width // heads)
            for n in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width / heads)
        scores = jnp.where(seen, scores, -1e9)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        x = x + dense(p["out"], mixed.reshape(batch, length, width))
        y = jax.nn.gelu(dense(p["up"], _norm(p["norm2"], x)))
        x = x + dense(p["down"], y)
    return _norm(params["norm"], x)


def pooled(tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns the mean over tokens, [B, P, D] to [B, D], where ``mask`` [B, P] > 0."""
    if mask is None:
        return jnp.mean(tokens, axis=1)
    weight = (mask != 0)[..., None].astype(tokens.dtype)
    return jnp.sum(tokens * weight, 1) / jnp.maximum(jnp.sum(weight, 1), 1.0)


def l2_normalize(x: jax.Array) -> jax.Array:
    """Scales the rows of [..., D] to unit length; zero rows stay 0."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-8)


def patches(images: jax.Array, size: int) -> jax.Array:
    """Cuts [B, h, w, c] into [B, P, size * size * c]."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * c)


def add_lora(key: jax.Array, params: PyTree, rank: int) -> PyTree:
    """Initialises LoRA factors for every two-dimensional kernel in a parameter dict.

    Args:
        key: random key for the A factors; B is zero.
        params: nested dict with ``kernel`` leaves.
        rank: rank of the factors.

    Returns:
        Nested dict of the adapters, with ``lora_a`` and ``lora_b`` for each kernel.
    """
    if "kernel" in params:
        if params["kernel"].ndim != 2:
            return {}
        inputs, outputs = params["kernel"].shape
        return {
            "lora_a": jax.random.normal(key, (inputs, rank)) / jnp.sqrt(inputs),
            "lora_b": jnp.zeros((rank, outputs)),
        }
    inner = {
        name: add_lora(jax.random.fold_in(key, i), value, rank)
        for i, (name, value) in enumerate(params.items())
        if isinstance(value, dict)
    }
    return {name: value for name, value in inner.items() if value}


def overlay(params: PyTree, extra: PyTree) -> PyTree:
    """Merges two nested dicts; leaves of ``extra`` take precedence."""
    merged = dict(params)
    for name, value in extra.items():
        inside = name in params and isinstance(value, dict)
        merged[name] = overlay(params[name], value) if inside else value
    return merged
