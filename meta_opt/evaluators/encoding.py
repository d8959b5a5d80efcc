"""Model outputs over whole splits, computed in batches of fixed shape.

If the model is sharded over a mesh, batches are sharded as in training, and every
process gets all results.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from flax import nnx

from meta_opt.models.vision_text import VisionText
from meta_opt.parallel.mesh import batch_sharding, batch_shards, mesh_of
from meta_opt.parallel.placement import place, to_host
from meta_opt.types import Batch, PyTree

Apply: TypeAlias = Callable[[Any, Any], jax.Array]
"""From a model and a pytree of arrays [B, ...] to an array [B, ...]."""


def encode_images(
    model: VisionText, images: np.ndarray, batch_size: int = 256
) -> np.ndarray:
    """Embeds ``images`` [N, h, w, 3] in batches: float32 [N, embed_dim]."""
    return in_batches(model, _encode_image, {"image": images}, batch_size)


def encode_texts(
    model: VisionText, tokens: np.ndarray, batch_size: int = 256
) -> np.ndarray:
    """Embeds ``tokens`` int [N, S] in batches: float32 [N, embed_dim]."""
    return in_batches(model, _encode_text, {"text": tokens}, batch_size)


def _encode_image(model: VisionText, batch: Batch) -> jax.Array:
    return model.encode_image(batch["image"])


def _encode_text(model: VisionText, batch: Batch) -> jax.Array:
    return model.encode_text(batch["text"])


def in_batches(
    model: nnx.Module, apply: Apply, data: PyTree, batch_size: int
) -> np.ndarray:
    """Applies a function of a model to arrays in batches.

    Args:
        model: the model, sharded over a mesh or not.
        apply: function of model and batch, hashable so that it is compiled once: a
            module-level function, or an instance of a frozen dataclass.
        data: pytree of arrays [N, ...]; the last batch is padded with zeros.
        batch_size: rows per batch, rounded up to a multiple of the mesh's shards.

    Returns:
        Results of ``apply`` for all rows, [N, ...], on the host.
    """
    graphdef, params = nnx.split(model)
    mesh = mesh_of(params)
    if mesh is not None:
        batch_size += -batch_size % batch_shards(mesh)
    outputs = []
    count = len(jax.tree.leaves(data)[0])
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)

        def rows(x: np.ndarray, start: int = start, size: int = size) -> np.ndarray:
            rest = [(0, 0)] * (x.ndim - 1)
            return np.pad(x[start : start + size], [(0, batch_size - size), *rest])

        batch = jax.tree.map(rows, data)
        if mesh is not None:
            batch = place(batch, batch_sharding(mesh))
        outputs.append(to_host(_apply(graphdef, params, batch, apply))[:size])
    return np.concatenate(outputs)


# Graph definitions compare by value, so later evaluations of a run reuse programs.
@functools.partial(jax.jit, static_argnames=("graphdef", "apply"))
def _apply(
    graphdef: nnx.GraphDef, params: nnx.State, batch: PyTree, apply: Apply
) -> jax.Array:
    return apply(nnx.merge(graphdef, params), batch)
