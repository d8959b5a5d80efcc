"""Batches of in-memory arrays, shuffled with a seed."""

import functools

import grain
import jax
import numpy as np

from meta_opt.data.same_data import SameData, arrays_digest
from meta_opt.types import PyTree


def array_batches(
    arrays: PyTree,
    batch_size: int,
    seed: int = 0,
    rows: np.ndarray | None = None,
) -> SameData:
    """Returns an infinite iterator of batches, with ``get_state`` and ``set_state``.

    Each epoch is reshuffled and its remainder dropped. ``set_state`` rejects a state
    that belongs to other arrays.

    Args:
        arrays: pytree of [N, ...].
        batch_size: B, global batch size over all processes.
        seed: random seed of the order.
        rows: int, indices of the rows of the global batch to make
            (`meta_opt.parallel.mesh.local_rows`); None for all.

    Raises:
        ValueError: fewer than B examples.

    >>> next(array_batches({"x": np.arange(4)}, 2))["x"].shape
    (2,)
    """
    count = len(jax.tree.leaves(arrays)[0])
    if count < batch_size:
        raise ValueError(
            f"a batch of {batch_size} needs as many examples and there are {count}: "
            "lower batch_size"
        )

    def take(indices: np.ndarray) -> PyTree:
        chosen = indices if rows is None else indices[rows]
        return jax.tree.map(lambda x: x[chosen], arrays)

    dataset = grain.MapDataset.range(count).seed(seed).shuffle()
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=np.asarray)
    dataset = dataset.repeat(None).map(take)
    batches = iter(dataset.to_iter_dataset(grain.ReadOptions(0, 0)))
    return SameData(batches, functools.partial(arrays_digest, arrays))
