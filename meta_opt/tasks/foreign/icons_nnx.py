"""Folder of an icon from image and name: a name-modulated MLP-Mixer in NNX."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from meta_opt.tasks.foreign.data import deal, icons
from meta_opt.tasks.task import Arrays, Task
from meta_opt.types import PyTree

BUCKETS, GRAMS, CHANNELS, PATCHES = 1024, 16, 64, 64


class MixerBlock(nnx.Module):
    """Mixes positions, then channels; scale and shift depend on the name (FiLM)."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(CHANNELS, rngs=rngs)
        self.token_in = nnx.Linear(PATCHES, 48, rngs=rngs)
        self.token_out = nnx.Linear(48, PATCHES, rngs=rngs)
        self.norm2 = nnx.LayerNorm(CHANNELS, rngs=rngs)
        self.channel_in = nnx.Linear(CHANNELS, 128, rngs=rngs)
        self.channel_out = nnx.Linear(128, CHANNELS, rngs=rngs)
        self.film = nnx.Linear(CHANNELS, 2 * CHANNELS, rngs=rngs)

    def __call__(self, x: jax.Array, name: jax.Array) -> jax.Array:
        """[B, P, C] and [B, C] to [B, P, C]."""
        y = self.norm1(x).swapaxes(1, 2)
        x = x + self.token_out(nnx.gelu(self.token_in(y))).swapaxes(1, 2)
        scale, shift = jnp.split(self.film(name)[:, None], 2, -1)
        y = self.norm2(x) * (1 + scale) + shift
        return x + self.channel_out(nnx.gelu(self.channel_in(y)))


class Fusion(nnx.Module):
    """Classifies image patches together with hashed letter n-grams."""

    def __init__(self, classes: int, *, rngs: nnx.Rngs) -> None:
        self.patch = nnx.Linear(48, CHANNELS, rngs=rngs)
        self.grams = nnx.Embed(BUCKETS, CHANNELS, rngs=rngs)
        self.blocks = nnx.List([MixerBlock(rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(CHANNELS, rngs=rngs)
        self.head = nnx.Linear(2 * CHANNELS, classes, rngs=rngs)

    def __call__(
        self, image: jax.Array, grams: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """[B, 32, 32, 3] and int [B, N] to logits."""
        b = len(image)
        x = image.reshape(b, 8, 4, 8, 4, 3).swapaxes(2, 3).reshape(b, PATCHES, 48)
        real = (grams > 0)[..., None].astype(x.dtype)
        if key is not None:  # drop a fifth of the n-grams
            real = real * jax.random.bernoulli(key, 0.8, real.shape)
        name = (self.grams(grams) * real).sum(1) / jnp.maximum(real.sum(1), 1)
        x = self.patch(x)
        for block in self.blocks:
            x = block(x, name)
        return self.head(jnp.concatenate([self.norm(x).mean(1), name], -1))


def _hashed(name: str) -> list[int]:
    word = f"<{name}>"
    grams = [word[i : i + 3] for i in range(len(word) - 2)][:GRAMS]
    return [1 + zlib.crc32(gram.encode()) % (BUCKETS - 1) for gram in grams]


def icons_fusion(folder: str | None) -> Task:
    """Oxygen's icons with their names, 500 for training."""
    found = icons(folder)
    grams = np.zeros((len(found.names), GRAMS), np.int32)
    for row, name in zip(grams, found.names, strict=True):
        ids = _hashed(name)
        row[: len(ids)] = ids
    arrays = {
        "image": (found.images / 127.5 - 1).astype(np.float32),
        "grams": grams,
        "label": found.labels,
    }
    classes = len(found.folders)
    graph, _ = nnx.split(nnx.eval_shape(lambda: Fusion(classes, rngs=nnx.Rngs(0))))

    def init(key: jax.Array) -> PyTree:
        return nnx.split(Fusion(classes, rngs=nnx.Rngs(key)))[1]

    def loss(
        state: PyTree, arrays: Arrays, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graph, state)(arrays["image"], arrays["grams"], key)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, arrays["label"])
        return each.mean(), (logits.argmax(-1) != arrays["label"]).mean()

    return Task(
        name="icons_fusion",
        dataset="foreign",
        init=init,
        loss=loss,
        splits=deal(arrays, 500, 150, 300, seed=5),
        batch_size=24,
        horizons=(80, 400),
        provides_loss=False,
        train_loss=loss,
    )
