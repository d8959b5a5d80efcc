"""Few-shot subsets, chosen by a hash of the examples' keys."""

from collections.abc import Sequence

import numpy as np

from meta_opt.data.splits import unit_hash


def few_shots(
    labels: np.ndarray, keys: Sequence[str], shots: int, seed: int = 0
) -> np.ndarray:
    """Chooses examples of each class; fewer shots are a subset of more.

    Args:
        labels: int [N].
        keys: N unique keys of the examples, whose hashes decide.
        shots: number of examples per class.
        seed: of the choice.

    Returns:
        Indices int [shots x classes], ascending.

    Raises:
        ValueError: a class with fewer examples, or ``shots`` below 1.
    """
    labels = np.asarray(labels)
    if shots < 1:
        raise ValueError(f"shots={shots} must be at least 1")
    found, counts = np.unique(labels, return_counts=True)
    short = {int(k): int(n) for k, n in zip(found, counts, strict=True) if n < shots}
    if short or not len(found):
        raise ValueError(
            f"shots={shots} of each class are more than there are; examples by class: "
            f"{short}"
        )
    return np.flatnonzero(ranks_in_class(labels, keys, seed) < shots)


def ranks_in_class(labels: np.ndarray, keys: Sequence[str], seed: int) -> np.ndarray:
    """The rank of each example within its class, in the order of a hash.

    Args:
        labels: int [N].
        keys: N unique keys.
        seed: random seed of the order.

    Returns:
        int [N], ranks from 0.

    Raises:
        ValueError: a duplicate key, or a number of keys other than of labels.
    """
    if len(keys) != len(labels) or len(set(keys)) != len(keys):
        raise ValueError(
            f"{len(labels)} examples have {len(set(keys))} different keys; each needs "
            "one of its own"
        )
    seen: dict[int, int] = {}
    ranks = np.zeros(len(labels), int)
    for i in sorted(range(len(keys)), key=lambda i: unit_hash(f"{seed} {keys[i]}")):
        ranks[i] = seen.get(int(labels[i]), 0)
        seen[int(labels[i])] = ranks[i] + 1
    return ranks
