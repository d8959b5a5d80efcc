"""A Llama-style language model of Python source code in Flax NNX."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.tasks.foreign.data import in_turn, source_text, windows
from meta_opt.tasks.task import Arrays, Task
from meta_opt.types import PyTree

VOCAB, DIM, HEADS, DEPTH, SEQ = 128, 64, 4, 2, 64


def rotate(x: jax.Array) -> jax.Array:
    """Rotary position embeddings on [B, S, H, D] (Su et al. 2021, arXiv:2104.09864)."""
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-jnp.arange(half) / half)
    angles = jnp.arange(x.shape[1])[:, None] * frequencies[None]
    cos, sin = (f(angles)[None, :, None, :] for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


class Attention(nnx.Module):
    """Causal attention without biases."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wq = nnx.Linear(DIM, DIM, use_bias=False, rngs=rngs)
        self.wk = nnx.Linear(DIM, DIM, use_bias=False, rngs=rngs)
        self.wv = nnx.Linear(DIM, DIM, use_bias=False, rngs=rngs)
        self.wo = nnx.Linear(DIM, DIM, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, S, D] to [B, S, D]."""
        b, s, _ = x.shape
        q, k, v = (w(x).reshape(b, s, HEADS, -1) for w in (self.wq, self.wk, self.wv))
        out = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.wo(out.reshape(b, s, DIM))


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        hidden = 8 * DIM // 3
        self.w1 = nnx.Linear(DIM, hidden, use_bias=False, rngs=rngs)
        self.w2 = nnx.Linear(hidden, DIM, use_bias=False, rngs=rngs)
        self.w3 = nnx.Linear(DIM, hidden, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, S, D] to [B, S, D]."""
        return self.w2(nnx.silu(self.w1(x)) * self.w3(x))


class Block(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.RMSNorm(DIM, rngs=rngs)
        self.attention = Attention(rngs)
        self.ffn_norm = nnx.RMSNorm(DIM, rngs=rngs)
        self.feed_forward = FeedForward(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, S, D] to [B, S, D]."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nnx.Module):
    """Predicts the logits of the next byte."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.tok_embeddings = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.layers = nnx.List([Block(rngs) for _ in range(DEPTH)])
        self.norm = nnx.RMSNorm(DIM, rngs=rngs)
        self.output = nnx.Linear(DIM, VOCAB, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps bytes, int [B, S], to logits [B, S, K]."""
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


def source_llama(folder: str | None) -> Task:
    """Bytes of JAX's source code, 20,000 windows: a run repeats hardly any."""
    del folder
    tokens = windows(source_text("jax"), SEQ + 1, 75)
    # Windows do not overlap; the last files are held out.
    tokens = np.minimum(tokens, VOCAB - 1)
    graph, _ = nnx.split(nnx.eval_shape(lambda: Llama(nnx.Rngs(0))))

    def init(key: jax.Array) -> PyTree:
        return nnx.state(Llama(nnx.Rngs(key)), nnx.Param)

    def loss(state: PyTree, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        tokens = arrays["tokens"].astype(jnp.int32)
        logits = nnx.merge(graph, state)(tokens[:, :-1])
        target = tokens[:, 1:]
        log_p = jax.nn.log_softmax(logits)
        each = -jnp.take_along_axis(log_p, target[..., None], -1)
        return each.mean(), jnp.mean(logits.argmax(-1) != target)

    return Task(
        name="source_llama",
        dataset="source",
        init=init,
        loss=loss,
        splits=in_turn({"tokens": tokens}, 20_000, 100, 200),
        batch_size=16,
        horizons=(100, 500),
    )
