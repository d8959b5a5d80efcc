"""A vision-text model small enough for tests, and data of its shape."""

import functools

import jax
import numpy as np
from flax import nnx

from meta_opt.models.vision_text import TowerConfig, VisionText, VisionTextConfig

TOWER = TowerConfig(width=16, depth=2, heads=2, mlp_width=32)
SMALL = VisionTextConfig(
    image_size=8,
    patch_size=4,
    vision=TOWER,
    text=TOWER,
    vocab_size=32,
    text_length=6,
    embed_dim=8,
)


@functools.cache
def _template(config: VisionTextConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.jit(lambda: VisionText(config, rngs=nnx.Rngs(0)))())


def small_model(config: VisionTextConfig = SMALL) -> VisionText:
    """A fresh copy of one initialisation, which is what takes the time."""
    return nnx.merge(*_template(config), copy=True)


def forward(model: VisionText, batch: dict[str, np.ndarray]) -> tuple[jax.Array, ...]:
    """``model(batch)``, compiled once for models of one structure."""
    return _forward(*nnx.split(model), batch)


@functools.partial(jax.jit, static_argnums=0)
def _forward(graphdef, params, batch):
    return nnx.merge(graphdef, params)(batch)


def small_batch(size: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    text = rng.integers(1, SMALL.vocab_size, (size, SMALL.text_length), np.int32)
    text[:, 4:] = 0
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 3), np.uint8),
        "text": text,
        "label": rng.integers(0, 3, size, np.int32),
    }
