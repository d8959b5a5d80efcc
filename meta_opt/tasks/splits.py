"""Splits of a task's examples: fixed by the data set, or random."""

import jax.numpy as jnp
import numpy as np

from meta_opt.tasks.task import Splits

NumpyArrays = dict[str, np.ndarray]
Parts = tuple[NumpyArrays, NumpyArrays, NumpyArrays]
"""Train, validation and test examples of a data set with fixed splits."""


def split_examples(
    arrays: NumpyArrays | Parts, train: int, held_out: int, seed: int = 0
) -> Splits:
    """Splits examples at random, or truncates the fixed splits of their data set.

    Args:
        arrays: examples, or those of each fixed split, which are shuffled first.
        train: maximum number of training examples.
        held_out: number of test examples; there are half as many validation examples.
        seed: random seed of a random split.
    """
    if isinstance(arrays, dict):
        return _random_split(arrays, train, held_out, seed)
    return _own_split(arrays, train, held_out)


def _random_split(arrays: NumpyArrays, train: int, held_out: int, seed: int) -> Splits:
    """Splits randomly: ``held_out`` test and half as many validation examples."""
    order = np.random.default_rng(seed).permutation(len(next(iter(arrays.values()))))
    rest = order[held_out + held_out // 2 :]
    picks = (rest[:train], order[held_out:][: held_out // 2], order[:held_out])
    return Splits(*({k: jnp.asarray(v[i]) for k, v in arrays.items()} for i in picks))


def _own_split(parts: Parts, train: int, held_out: int) -> Splits:
    """Shuffles the fixed splits of a data set, and truncates them to these sizes."""
    sizes = (train, held_out // 2, held_out)
    cut = []
    for part, size in zip(parts, sizes, strict=True):
        order = np.random.default_rng(0).permutation(len(next(iter(part.values()))))
        cut.append({k: jnp.asarray(v[order[:size]]) for k, v in part.items()})
    return Splits(*cut)


def some_classes(parts: Parts, classes: range) -> Parts:
    """Selects the examples of some classes, and relabels them from zero."""

    def cut(arrays: NumpyArrays) -> NumpyArrays:
        keep = np.isin(arrays["label"], list(classes))
        kept = {k: v[keep] for k, v in arrays.items()}
        return {**kept, "label": (kept["label"] - classes.start).astype(np.int32)}

    a, b, c = (cut(part) for part in parts)
    return a, b, c


def count_classes(arrays: NumpyArrays | Parts) -> int:
    """Returns the number of classes of all examples, or of the training split."""
    first = arrays if isinstance(arrays, dict) else arrays[0]
    return int(first["label"].max()) + 1
