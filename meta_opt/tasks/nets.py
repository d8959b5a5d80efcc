"""Small networks as pure functions of a parameter dict: MLP, transformer, LoRA."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_opt.types import PyTree


def _dense(key: jax.Array, inputs: int, outputs: int, gain: float = 1.0) -> PyTree:
    kernel = jax.random.normal(key, (inputs, outputs)) * gain / jnp.sqrt(inputs)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def dense(params: PyTree, x: jax.Array) -> jax.Array:
    """``x W + b`` over the last axis; adds a LoRA branch where there is one."""
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
    """Layers ``0 .. n-1`` of a ReLU MLP of the given widths, the last one ``head``."""
    keys = jax.random.split(key, len(widths) - 1)
    pairs = list(itertools.pairwise(widths))
    names = [*(str(i) for i in range(len(pairs) - 1)), "head"]
    return {
        name: _dense(k, a, b, gain=1.4)
        for name, k, (a, b) in zip(names, keys, pairs, strict=True)
    }


def mlp(params: PyTree, x: jax.Array) -> jax.Array:
    """Applies `init_mlp`'s layers to [B, inputs]."""
    for i in range(len(params) - 1):
        x = jax.nn.relu(dense(params[str(i)], x))
    return dense(params["head"], x)


def init_transformer(
    key: jax.Array, inputs: int, positions: int, width: int, depth: int
) -> PyTree:
    """A pre-LN transformer over ``positions`` tokens of ``inputs`` numbers each."""
    first, where, *keys = jax.random.split(key, 2 + depth)
    blocks = {}
    for i, block_key in enumerate(keys):
        q, k, v, o, u, d = jax.random.split(block_key, 6)
        blocks[str(i)] = {
            "norm1": _norm_init(width),
            "query": _dense(q, width, width),
            "key": _dense(k, width, width),
            "value": _dense(v, width, width),
            "out": _dense(o, width, width),
            "norm2": _norm_init(width),
            "up": _dense(u, width, 4 * width),
            "down": _dense(d, 4 * width, width),
        }
    return {
        "patches": _dense(first, inputs, width),
        "positions": 0.02 * jax.random.normal(where, (positions, width)),
        "layers": blocks,
        "norm": _norm_init(width),
    }


def transformer(params: PyTree, x: jax.Array, heads: int = 2) -> jax.Array:
    """Encodes [B, P, inputs] to the mean of its tokens, [B, D]."""
    x = dense(params["patches"], x) + params["positions"][None]
    batch, length, width = x.shape
    for i in range(len(params["layers"])):
        p = params["layers"][str(i)]
        y = _norm(p["norm1"], x)
        q, k, v = (
            dense(p[n], y).reshape(batch, length, heads, width // heads)
            for n in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width / heads)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        x = x + dense(p["out"], mixed.reshape(batch, length, width))
        y = jax.nn.gelu(dense(p["up"], _norm(p["norm2"], x)))
        x = x + dense(p["down"], y)
    return jnp.mean(_norm(params["norm"], x), axis=1)


def patches(images: jax.Array, size: int) -> jax.Array:
    """Cuts [B, h, w, c] into [B, P, size * size * c]."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * c)


def add_lora(key: jax.Array, params: PyTree, rank: int) -> PyTree:
    """LoRA factors for every kernel of a parameter dict.

    Args:
        key: random key for the A factors; B is zero.
        params: nested dict with ``kernel`` leaves of rank 2.
        rank: of the factors.

    Returns:
        The adapters: the same nesting, ``lora_a`` and ``lora_b`` beside each kernel.
    """
    if "kernel" in params:
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


def with_lora(params: PyTree, adapters: PyTree) -> PyTree:
    """``params`` with adapters beside their kernels."""
    merged = dict(params)
    for name, value in adapters.items():
        inside = name in params and isinstance(value, dict)
        merged[name] = with_lora(params[name], value) if inside else value
    return merged
