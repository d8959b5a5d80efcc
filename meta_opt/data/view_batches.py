"""Batches in which each example is one of its random views."""

import functools
from collections.abc import Callable

import grain
import numpy as np

from meta_opt.data.preprocessing.augment import AugmentConfig, augment
from meta_opt.data.same_data import SameData, arrays_digest

Take = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""From the index of an example, int [], to its inputs [...]."""


def view_batches(
    take: Take,
    labels: np.ndarray,
    batch_size: int,
    seed: int = 0,
    rows: np.ndarray | None = None,
) -> SameData:
    """An endless iterator of batches, with ``get_state`` and ``set_state``.

    Each epoch has a new order and new views, and leaves its remainder out. A state of
    other labels is refused.

    Args:
        take: see `stored_views` and `fresh_views`.
        labels: int [N].
        batch_size: B, of all processes together.
        seed: of order and views.
        rows: int, which rows of each batch to make (see
            `meta_opt.parallel.mesh.local_rows`); None for all.

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
        # Drawn for each row of the whole batch, so that a row does not depend on which
        # others are made.
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
    """Draws one of the views [N, V, ...] of an example, each alike."""

    def take(index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return views[index, rng.integers(views.shape[1])]

    return take


def fresh_views(images: np.ndarray, config: AugmentConfig) -> Take:
    """Augments images uint8 [N, h, w, 3], differently each time."""

    def take(index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return augment(images[index], config, rng)

    return take
