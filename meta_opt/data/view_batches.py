"""Batches of random views (augmentations) of examples."""

import functools
from collections.abc import Callable

import grain
import numpy as np

from meta_opt.data.preprocessing.augment import AugmentConfig, augment
from meta_opt.data.same_data import SameData, arrays_digest

Take = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Maps the index of an example, int [], and a random generator to its inputs [...]."""


def view_batches(
    take: Take,
    labels: np.ndarray,
    batch_size: int,
    seed: int = 0,
    rows: np.ndarray | None = None,
) -> SameData:
    """Returns an infinite iterator of batches, with ``get_state`` and ``set_state``.

    Each epoch is reshuffled, samples new views and drops its remainder.
    ``set_state`` rejects a state that belongs to other labels.

    Args:
        take: function that samples a view, of `stored_views` or `fresh_views`.
        labels: int [N].
        batch_size: B, global batch size over all processes.
        seed: random seed of order and views.
        rows: int, indices of the rows of the global batch to make
            (`meta_opt.parallel.mesh.local_rows`); None for all.

    Returns:
        An iterator of ``inputs`` [B, ...] and ``label`` int32 [B].

    Raises:
        ValueError: fewer than B examples.
    """
    if len(labels) < batch_size:
        raise ValueError(
            f"a batch of {batch_size} needs as many examples and there are "
            f"{len(labels)}: lower batch_size"
        )

    def make(indices: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        # Sampled for each row of the whole batch, so that a row does not depend on
        # which others are made.
        seeds = rng.integers(2**63, size=len(indices))
        chosen = np.arange(len(indices)) if rows is None else rows
        inputs = [
            take(indices[i], np.random.default_rng(int(seeds[i]))) for i in chosen
        ]
        return {"inputs": np.stack(inputs), "label": labels[indices[chosen]]}

    dataset = grain.MapDataset.range(len(labels)).seed(seed).shuffle()
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=np.asarray)
    dataset = dataset.repeat(None).random_map(make)
    batches = iter(dataset.to_iter_dataset(grain.ReadOptions(0, 0)))
    return SameData(batches, functools.partial(arrays_digest, labels))


def stored_views(views: np.ndarray) -> Take:
    """Samples uniformly from the stored views [N, V, ...] of an example."""

    def take(index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return views[index, rng.integers(views.shape[1])]

    return take


def fresh_views(images: np.ndarray, config: AugmentConfig) -> Take:
    """Augments images uint8 [N, h, w, 3] on the fly."""

    def take(index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return augment(images[index], config, rng)

    return take
