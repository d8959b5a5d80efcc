"""Symmetric label noise for training data, at the same rate in all classes."""

from collections.abc import Sequence

import numpy as np

from meta_opt.data.preprocessing.shots import ranks_in_class
from meta_opt.data.splits import unit_hash


def noisy_labels(
    labels: np.ndarray,
    keys: Sequence[str],
    rate: float,
    num_classes: int,
    seed: int = 0,
) -> np.ndarray:
    """Replaces the labels of a share of each class's examples by wrong ones.

    All wrong classes are equally likely (symmetric noise). Examples are chosen by
    hashes of their keys, so that their order does not matter. A higher rate makes the
    same changes as a lower one, and more.

    Args:
        labels: int [N].
        keys: N unique keys of the examples.
        rate: share of wrong labels; ``round(rate N)`` are wrong in total, and in each
            class the expected number, rounded up or down.
        num_classes: K, at least 2.
        seed: random seed of the choice.

    Returns:
        int [N], a new array.

    Raises:
        ValueError: a rate outside [0, 1], labels out of range, or a number of keys
            other than the number of examples.
    """
    labels = np.asarray(labels)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate={rate} of wrong labels must be from 0 to 1")
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} leaves no wrong label")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()} and there are "
            f"{num_classes} classes"
        )
    ranks = ranks_in_class(labels, keys, seed)
    # Systematic sampling: classes have evenly spaced offsets in a random order, so that
    # the rounding of their shares is balanced.
    present = np.unique(labels)
    turns = {
        label: (place + 0.5) / len(present)
        for place, label in enumerate(
            sorted(present, key=lambda k: unit_hash(f"{seed} turn {k}"))
        )
    }
    sizes = {label: int(np.sum(labels == label)) for label in present}
    places = [
        (rank + turns[label]) / sizes[label]
        for rank, label in zip(ranks, labels, strict=True)
    ]
    noisy = labels.copy()
    for i in np.argsort(places, kind="stable")[: round(rate * len(labels))]:
        other = int(unit_hash(f"{seed} wrong {keys[i]}") * (num_classes - 1))
        noisy[i] = other + (other >= labels[i])
    return noisy
