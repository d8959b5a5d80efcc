"""Embeddings of whole splits, in batches of one shape."""

import functools

import jax
import numpy as np
from flax import nnx

from meta_opt.models.vision_text import VisionText


def encode_images(
    model: VisionText, images: np.ndarray, batch_size: int = 256
) -> np.ndarray:
    """Embeds ``images`` [N, h, w, 3] in batches: float32 [N, embed_dim]."""
    return _encode(model, images, batch_size, "encode_image")


def encode_texts(
    model: VisionText, tokens: np.ndarray, batch_size: int = 256
) -> np.ndarray:
    """Embeds ``tokens`` int [N, S] in batches: float32 [N, embed_dim]."""
    return _encode(model, tokens, batch_size, "encode_text")


def _encode(
    model: VisionText, inputs: np.ndarray, batch_size: int, method: str
) -> np.ndarray:
    graphdef, params = nnx.split(model)
    outputs = []
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        padding = [(0, batch_size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
        z = _encode_batch(graphdef, params, np.pad(batch, padding), method)
        outputs.append(np.asarray(z)[: len(batch)])
    return np.concatenate(outputs)


# Graph definitions compare by value: evaluating later steps of a run compiles nothing.
@functools.partial(jax.jit, static_argnames=("graphdef", "method"))
def _encode_batch(
    graphdef: nnx.GraphDef, params: nnx.State, batch: np.ndarray, method: str
) -> jax.Array:
    return getattr(nnx.merge(graphdef, params), method)(batch)
