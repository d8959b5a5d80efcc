"""Embeddings of whole splits, in batches of one shape.

Where the model is laid out over a mesh the batches are divided over it as in training,
and the embeddings come back whole to every process.
"""

import functools

import jax
import numpy as np
from flax import nnx

from meta_opt.models.vision_text import VisionText
from meta_opt.parallel.mesh import batch_sharding, batch_shards, mesh_of
from meta_opt.parallel.placement import place, to_host


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
    mesh = mesh_of(params)
    if mesh is not None:
        batch_size += -batch_size % batch_shards(mesh)
    outputs = []
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        padding = [(0, batch_size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
        padded = np.pad(batch, padding)
        if mesh is not None:
            padded = place(padded, batch_sharding(mesh))
        z = _encode_batch(graphdef, params, padded, method)
        outputs.append(to_host(z)[: len(batch)])
    return np.concatenate(outputs)


# Graph definitions compare by value: evaluating later steps of a run compiles nothing.
@functools.partial(jax.jit, static_argnames=("graphdef", "method"))
def _encode_batch(
    graphdef: nnx.GraphDef, params: nnx.State, batch: np.ndarray, method: str
) -> jax.Array:
    return getattr(nnx.merge(graphdef, params), method)(batch)
