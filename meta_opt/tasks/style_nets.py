"""Encoders in any `Style`: MLP, CNN, transformer, MLP-Mixer and recurrent networks.

An encoder returns tokens [B, P, D] (image positions, frames or letters) and pools them
into the features for a head. MLPs and bags of words have one token.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.tasks.nets import patches
from meta_opt.tasks.styles import (
    Style,
    conv,
    dense,
    dropout,
    each_block,
    in_blocks,
    init_conv,
    init_dense,
    init_norm,
    init_table,
    norm,
)
from meta_opt.tasks.task import Arrays
from meta_opt.types import PyTree, check_name


@dataclasses.dataclass(frozen=True)
class Body:
    """Architecture and input field of an encoder.

    Attributes:
        kind: type of encoder, a key of `ENCODERS`.
        field: input field of the arrays; ``text`` and ``words`` are token ids, padded
            with 0, all other fields are floats.
        widths: widths of the hidden layers (channels of convolutions). Networks of
            identical blocks have ``len(widths)`` blocks of width ``widths[-1]``.
        patch: side of image patches, or number of frames per token.
        heads: number of attention heads.
        causal: whether attention is causal.
        cell: cell of a recurrent network: ``gru``, ``lstm`` or ``linear`` (gated,
            elementwise).
        residual: whether dense and convolutional layers have a residual branch.
        stride: stride of the first convolution; all others have stride 2.
        vocabulary: vocabulary size.
    """

    kind: str
    field: str = "image"
    widths: tuple[int, ...] = (32, 32)
    patch: int = 4
    heads: int = 4
    causal: bool = False
    cell: str = "gru"
    residual: bool = False
    stride: int = 1
    vocabulary: int = 64

    def __post_init__(self) -> None:
        check_name("kind", self.kind, ENCODERS)
        check_name("cell", self.cell, ("gru", "lstm", "linear"))

    @property
    def reads_ids(self) -> bool:
        """Whether the field holds token ids."""
        return self.field in ("text", "words")


class Encoder(NamedTuple):
    """An encoder as functions.

    Attributes:
        init: ``key -> params``.
        tokens: ``(params, arrays, key) -> [B, P, D]``; the key is for dropout, None
            disables dropout.
        pool: ``([B, P, D], arrays) -> [B, width]``.
        width: width of the pooled features.
        token_width: D, width of the tokens.
    """

    init: Callable[[jax.Array], PyTree]
    tokens: Callable[[PyTree, Arrays, jax.Array | None], jax.Array]
    pool: Callable[[jax.Array, Arrays], jax.Array]
    width: int
    token_width: int


def build_encoder(style: Style, body: Body, arrays: Arrays) -> Encoder:
    """Returns an encoder for examples of the shape of ``arrays``."""
    return ENCODERS[body.kind](style, body, tuple(arrays[body.field].shape[1:]))


def _mean(body: Body) -> Callable[[jax.Array, Arrays], jax.Array]:
    """Returns a function for the mean over tokens, without padding of token ids."""

    def pool(tokens: jax.Array, arrays: Arrays) -> jax.Array:
        if not body.reads_ids or tokens.shape[1] != arrays[body.field].shape[1]:
            return jnp.mean(tokens, axis=1)
        weight = (arrays[body.field] != 0)[..., None].astype(tokens.dtype)
        return jnp.sum(tokens * weight, 1) / jnp.maximum(jnp.sum(weight, 1), 1.0)

    return pool


def _mlp(style: Style, body: Body, shape: tuple[int, ...]) -> Encoder:
    """Dense layers, each followed by norm and activation, on the flattened field.

    A residual layer first projects to its width, then adds ``W2 act(W1 norm(x))``; with
    `post_norm` the norm follows the sum.
    """
    inputs, width = int(np.prod(shape)), body.widths[-1]

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, 2 * len(body.widths) + 1)
        if not body.residual:
            pairs = zip((inputs, *body.widths[:-1]), body.widths, keys, strict=False)
            layers = [
                {"lin": init_dense(k, style, a, b), "n": init_norm(style, b)}
                for a, b, k in pairs
            ]
            return {"h": in_blocks(style, layers)}
        scale = _branch_scale(style, len(body.widths))
        blocks = [
            {
                "n": init_norm(style, width),
                "in": init_dense(keys[2 * i], style, width, 2 * width),
                "out": init_dense(keys[2 * i + 1], style, 2 * width, width, scale),
            }
            for i in range(len(body.widths))
        ]
        return {
            "stem": init_dense(keys[-1], style, inputs, width),
            "h": in_blocks(style, blocks),
        }

    def tokens(params: PyTree, arrays: Arrays, key: jax.Array | None) -> jax.Array:
        x = arrays[body.field].reshape(len(arrays[body.field]), -1)
        if not body.residual:
            for i, p in enumerate(each_block(params["h"])):
                x = style.act(norm(style, p["n"], dense(style, p["lin"], x)))
                x = dropout(style, key, i, x)
            return x[:, None]
        x = dense(style, params["stem"], x)
        for i, p in enumerate(each_block(params["h"])):
            y = x if style.post_norm else norm(style, p["n"], x)
            y = dense(style, p["out"], style.act(dense(style, p["in"], y)))
            x = x + dropout(style, key, i, y)
            x = norm(style, p["n"], x) if style.post_norm else x
        return x[:, None]

    return Encoder(init, tokens, lambda x, _: x[:, 0], width, width)


def _branch_scale(style: Style, depth: int) -> float:
    return (2 * depth) ** -0.5 if style.residual_scaling else 1.0


def _conv(style: Style, body: Body, shape: tuple[int, ...]) -> Encoder:
    """3x3 convolutions on images [h, w, c] or [h, w]; all but the first have stride 2.

    With `residual` each is followed by a residual branch of one more convolution.
    """
    channels = shape[2] if len(shape) == 3 else 1
    strides = (body.stride, *(2 for _ in body.widths[1:]))
    places = np.array(shape[:2])
    for stride in strides:
        places = -(-places // stride)

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, 2 * len(body.widths))
        before = (channels, *body.widths[:-1])
        blocks = []
        for i, (a, b) in enumerate(zip(before, body.widths, strict=True)):
            block = {"c": init_conv(keys[2 * i], style, a, b), "n": init_norm(style, b)}
            if body.residual:
                scale = _branch_scale(style, len(body.widths))
                block["r"] = init_conv(keys[2 * i + 1], style, b, b, scale)
                block["rn"] = init_norm(style, b)
            blocks.append(block)
        return in_blocks(style, blocks)

    def tokens(params: PyTree, arrays: Arrays, key: jax.Array | None) -> jax.Array:
        x = arrays[body.field]
        x = x[..., None] if x.ndim == 3 else x
        for i, (p, stride) in enumerate(zip(each_block(params), strides, strict=True)):
            x = style.act(norm(style, p["n"], conv(style, p["c"], x, stride)))
            if body.residual:
                y = style.act(norm(style, p["rn"], conv(style, p["r"], x, 1)))
                x = x + dropout(style, key, i, y)
        return x.reshape(len(x), -1, x.shape[-1])

    last = body.widths[-1]
    if style.pool == "flatten":
        width = int(np.prod(places)) * last
        return Encoder(init, tokens, lambda x, _: x.reshape(len(x), -1), width, last)
    return Encoder(init, tokens, _mean(body), last, last)


def _stem(
    style: Style, body: Body, shape: tuple[int, ...]
) -> tuple[Callable, Callable, int]:
    """Returns ``(init, apply, P)``: embeds patches, frames or ids as [B, P, D]."""
    width = body.widths[-1]
    if body.reads_ids:

        def embed(params: PyTree, x: jax.Array) -> jax.Array:
            return params[x]

        return (
            lambda key: init_table(key, style, body.vocabulary, width),
            embed,
            shape[0],
        )

    def cut(x: jax.Array) -> jax.Array:
        if len(shape) == 3:
            return patches(x, body.patch)
        return x.reshape(len(x), shape[0] // body.patch, -1)

    count, inputs = jax.eval_shape(cut, jnp.zeros((1, *shape))).shape[1:]
    return (
        lambda key: init_dense(key, style, inputs, width),
        lambda params, x: dense(style, params, cut(x)),
        count,
    )


def _transformer(style: Style, body: Body, shape: tuple[int, ...]) -> Encoder:
    """A transformer on patches, frames or token ids."""
    width, depth = body.widths[-1], len(body.widths)
    init_stem, stem, count = _stem(style, body, shape)
    extra = int(style.pool == "cls")
    wave = jnp.asarray(_sinusoids(count + extra, width))

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, depth + 3)
        params: dict[str, PyTree] = {
            "emb": init_stem(keys[0]),
            "h": in_blocks(style, [_init_block(k, style, body) for k in keys[3:]]),
        }
        if style.positions == "learned":
            params["pos"] = init_table(keys[1], style, count + extra, width)
        if extra:
            params["cls"] = init_table(keys[2], style, 1, width)
        if not style.post_norm:
            params["n"] = init_norm(style, width)
        return params

    def tokens(params: PyTree, arrays: Arrays, key: jax.Array | None) -> jax.Array:
        ids = arrays[body.field]
        x = stem(params["emb"], ids)
        seen = (ids != 0)[:, None, None, :] if body.reads_ids else None
        if body.causal:
            seen = jnp.tril(jnp.ones((count, count), bool))[None, None]
        if extra:
            first = jnp.broadcast_to(params["cls"][None], (len(x), 1, width))
            x = jnp.concatenate([first, x], axis=1)
            if seen is not None:
                seen = jnp.pad(seen, ((0, 0),) * 3 + ((1, 0),), constant_values=True)
        if style.positions != "none":
            x = x + (params["pos"] if style.positions == "learned" else wave)[None]
        x = dropout(style, key, 0, x)
        for i, p in enumerate(each_block(params["h"])):
            drop = None if key is None else jax.random.fold_in(key, i + 1)
            x = _block(style, body, p, x, seen, drop)
        return x if style.post_norm else norm(style, params["n"], x)

    if extra:
        return Encoder(init, tokens, lambda x, _: x[:, 0], width, width)
    return Encoder(init, tokens, _mean(body), width, width)


def _sinusoids(count: int, width: int) -> np.ndarray:
    """Sinusoidal positions [count, width] (Vaswani et al. 2017, section 3.5)."""
    rates = 10_000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.arange(count)[:, None] * rates[None]
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return waves.reshape(count, -1)[:, :width].astype(np.float32)


def _init_block(key: jax.Array, style: Style, body: Body) -> PyTree:
    width, scale = body.widths[-1], _branch_scale(style, len(body.widths))
    q, k, v, o, u, g, d = jax.random.split(key, 7)
    inner = 2 * width if style.gated_mlp else 4 * width
    params = {
        "n1": init_norm(style, width),
        "o": init_dense(o, style, width, width, scale),
        "n2": init_norm(style, width),
        "up": init_dense(u, style, width, inner),
        "down": init_dense(d, style, inner, width, scale),
    }
    if style.gated_mlp:
        params["gate"] = init_dense(g, style, width, inner)
    if style.fused_qkv:
        return {**params, "qkv": init_dense(q, style, width, 3 * width)}
    apart = {
        n: init_dense(r, style, width, width)
        for n, r in zip("qkv", (q, k, v), strict=True)
    }
    return {**params, **apart}


def _block(
    style: Style,
    body: Body,
    p: PyTree,
    x: jax.Array,
    seen: jax.Array | None,
    key: jax.Array | None,
) -> jax.Array:
    def attention(y: jax.Array) -> jax.Array:
        if style.fused_qkv:
            q, k, v = jnp.split(dense(style, p["qkv"], y), 3, axis=-1)
        else:
            q, k, v = (dense(style, p[name], y) for name in "qkv")
        return dense(style, p["o"], attend(q, k, v, body.heads, seen))

    def mlp(y: jax.Array) -> jax.Array:
        z = dense(style, p["up"], y)
        if style.gated_mlp:
            z = style.act(dense(style, p["gate"], y)) * z
        else:
            z = style.act(z)
        return dense(style, p["down"], z)

    for i, (name, branch) in enumerate((("n1", attention), ("n2", mlp))):
        if style.post_norm:
            x = norm(style, p[name], x + dropout(style, key, i, branch(x)))
        else:
            x = x + dropout(style, key, i, branch(norm(style, p[name], x)))
    return x


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    heads: int,
    seen: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention of [B, Q, D] to [B, P, D].

    The mask ``seen`` has shape [B, H, Q, P] or broadcasts to it.
    """
    width = q.shape[-1] // heads
    q, k, v = (x.reshape(*x.shape[:2], heads, width) for x in (q, k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * width**-0.5
    if seen is not None:
        scores = jnp.where(seen, scores, -1e9)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
    return mixed.reshape(*mixed.shape[:2], -1)


def _mixer(style: Style, body: Body, shape: tuple[int, ...]) -> Encoder:
    """MLP-Mixer: each block has an MLP over tokens, then one over channels."""
    width = body.widths[-1]
    init_stem, stem, count = _stem(style, body, shape)

    def init(key: jax.Array) -> PyTree:
        first, *keys = jax.random.split(key, 1 + len(body.widths))
        scale = _branch_scale(style, len(body.widths))
        blocks = []
        for block_key in keys:
            a, b, c, d = jax.random.split(block_key, 4)
            blocks.append(
                {
                    "n1": init_norm(style, width),
                    "t1": init_dense(a, style, count, 2 * width),
                    "t2": init_dense(b, style, 2 * width, count, scale),
                    "n2": init_norm(style, width),
                    "c1": init_dense(c, style, width, 2 * width),
                    "c2": init_dense(d, style, 2 * width, width, scale),
                }
            )
        return {
            "emb": init_stem(first),
            "h": in_blocks(style, blocks),
            "n": init_norm(style, width),
        }

    def tokens(params: PyTree, arrays: Arrays, key: jax.Array | None) -> jax.Array:
        x = stem(params["emb"], arrays[body.field])
        for i, p in enumerate(each_block(params["h"])):
            y = norm(style, p["n1"], x).swapaxes(1, 2)
            y = dense(style, p["t2"], style.act(dense(style, p["t1"], y)))
            x = x + dropout(style, key, 2 * i, y.swapaxes(1, 2))
            y = style.act(dense(style, p["c1"], norm(style, p["n2"], x)))
            x = x + dropout(style, key, 2 * i + 1, dense(style, p["c2"], y))
        return norm(style, params["n"], x)

    return Encoder(init, tokens, _mean(body), width, width)


def _recurrent(style: Style, body: Body, shape: tuple[int, ...]) -> Encoder:
    """Layers of a GRU, LSTM or gated linear recurrence on frames or token ids.

    The linear recurrence is ``h <- a h + (1 - a) tanh(v)``, where ``a`` and ``v``
    depend on the input only, followed by an output gate.
    """
    width = body.widths[-1]
    gates = {"gru": 3, "lstm": 4, "linear": 3}[body.cell]
    init_stem, stem, _ = _stem(style, body, shape)

    def init(key: jax.Array) -> PyTree:
        first, *keys = jax.random.split(key, 1 + len(body.widths))
        layers = []
        for layer_key in keys:
            a, b = jax.random.split(layer_key)
            layer = {
                "ih": init_dense(a, style, width, gates * width),
                "n": init_norm(style, width),
            }
            if body.cell != "linear":
                layer["hh"] = init_dense(b, style, width, gates * width)
            layers.append(layer)
        return {"emb": init_stem(first), "h": in_blocks(style, layers)}

    def tokens(params: PyTree, arrays: Arrays, key: jax.Array | None) -> jax.Array:
        x = dropout(style, key, 0, stem(params["emb"], arrays[body.field]))
        for i, p in enumerate(each_block(params["h"])):
            given = dense(style, p["ih"], norm(style, p["n"], x)).swapaxes(0, 1)
            start = jnp.zeros((2 if body.cell == "lstm" else 1, len(x), width))

            def step(
                state: jax.Array, now: jax.Array, p: PyTree = p
            ) -> tuple[jax.Array, jax.Array]:
                own = None if "hh" not in p else dense(style, p["hh"], state[0])
                state, out = _cell(body.cell, state, now, own)
                return state, out

            _, y = jax.lax.scan(step, start, given)
            y = dropout(style, key, i + 1, y.swapaxes(0, 1))
            x = x + y if body.residual else y
        return x

    return Encoder(init, tokens, _mean(body), width, width)


def _cell(
    kind: str, state: jax.Array, given: jax.Array, own: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Runs one step: state [1 or 2, B, D], gates [B, g D] from input and from state."""
    if own is None:
        keep, value, out = jnp.split(given, 3, axis=-1)
        # The bias makes the initial recurrence keep most of the state.
        keep = jax.nn.sigmoid(keep + 2.0)
        h = keep * state[0] + (1 - keep) * jnp.tanh(value)
        return h[None], h * jax.nn.sigmoid(out)
    if kind == "gru":
        a, b, c = jnp.split(given, 3, axis=-1)
        d, e, f = jnp.split(own, 3, axis=-1)
        z = jax.nn.sigmoid(b + e)
        h = z * state[0] + (1 - z) * jnp.tanh(c + jax.nn.sigmoid(a + d) * f)
        return h[None], h
    i, f, g, o = jnp.split(given + own, 4, axis=-1)
    memory = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(memory)
    return jnp.stack([h, memory]), h


def _bag(style: Style, body: Body, shape: tuple[int, ...]) -> Encoder:
    """A bag of words: dense layers on the mean of embeddings."""
    table_width, *widths = body.widths
    rest = dataclasses.replace(body, widths=tuple(widths), field="mean")
    mlp = _mlp(style, rest, (table_width,)) if widths else None

    def init(key: jax.Array) -> PyTree:
        one, two = jax.random.split(key)
        table = init_table(one, style, body.vocabulary, table_width)
        return {"emb": table} if mlp is None else {"emb": table, "mlp": mlp.init(two)}

    def tokens(params: PyTree, arrays: Arrays, key: jax.Array | None) -> jax.Array:
        x = params["emb"][arrays[body.field]]
        mean = _mean(body)(x, arrays)
        if mlp is None:
            return mean[:, None]
        return mlp.tokens(params["mlp"], {"mean": mean}, key)

    width = body.widths[-1]
    return Encoder(init, tokens, lambda x, _: x[:, 0], width, width)


def _identity(style: Style, body: Body, shape: tuple[int, ...]) -> Encoder:
    """The flattened field without parameters, for linear models."""

    def tokens(params: PyTree, arrays: Arrays, key: jax.Array | None) -> jax.Array:
        return arrays[body.field].reshape(len(arrays[body.field]), 1, -1)

    width = int(np.prod(shape))
    return Encoder(lambda key: (), tokens, lambda x, _: x[:, 0], width, width)


ENCODERS: dict[str, Callable[[Style, Body, tuple[int, ...]], Encoder]] = {
    "mlp": _mlp,
    "conv": _conv,
    "transformer": _transformer,
    "mixer": _mixer,
    "recurrent": _recurrent,
    "bag": _bag,
    "identity": _identity,
}
"""Constructors of encoders by kind: ``(style, body, shape of an example)``."""
