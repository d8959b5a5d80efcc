"""A generative model small enough for tests, and data of its shape."""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from meta_opt.models.decoder import DecoderConfig
from meta_opt.models.generative import Generative, GenerativeConfig
from meta_opt.models.towers import TowerConfig

SMALL = GenerativeConfig(
    image_size=8,
    patch_size=4,
    vision=TowerConfig(
        width=16,
        depth=2,
        heads=2,
        mlp_width=32,
        pooling="none",
        projection="linear_bias",
    ),
    decoder=DecoderConfig(
        vocab_size=32,
        width=16,
        depth=2,
        heads=4,
        key_value_heads=2,
        head_width=8,
        mlp_width=32,
    ),
)


@functools.cache
def _values() -> nnx.State:
    """Random, larger than at the start: answers are no mere repetitions."""
    rng = np.random.default_rng(0)
    model = nnx.eval_shape(lambda: Generative(SMALL, rngs=nnx.Rngs(0)))
    values = jax.tree.map(
        lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), nnx.state(model)
    )
    embedding = values["decoder"]["tokens"]["embedding"]
    embedding[...] = 0.3 * embedding[...]
    return values


def small_model(**changes) -> Generative:
    """One set of parameters, in models that differ in their numerics only."""
    config = dataclasses.replace(SMALL, **changes)
    model = nnx.eval_shape(lambda: Generative(config, rngs=nnx.Rngs(0)))
    nnx.update(
        model,
        jax.tree.map(lambda x: jax.numpy.array(x, config.param_dtype), _values()),
    )
    return model


def small_batch(size: int = 4) -> dict[str, np.ndarray]:
    """Prompts of 5, 3, 1 and 0 tokens and answers of 6, 4, 2, and 5, padded."""
    rng = np.random.default_rng(1)
    prompt = rng.integers(4, 32, (size, 5), np.int32)
    text = rng.integers(4, 32, (size, 6), np.int32)
    for row in range(size):
        prompt[row, (5, 3, 1, 0)[row % 4] :] = 0
        text[row, (6, 4, 2, 5)[row % 4] :] = 0
    return {
        "image": rng.integers(0, 256, (size, 8, 8, 3), np.uint8),
        "prompt": prompt,
        "text": text,
    }


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, batch):
    model = nnx.merge(graphdef, params)
    return model.logits(batch["image"], batch["prompt"], batch["text"])


def logits(model: Generative, batch: dict[str, np.ndarray]) -> jax.Array:
    """The logits of ``text``, compiled once for models of one structure."""
    return _logits(*nnx.split(model), batch)
