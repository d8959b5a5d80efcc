"""The definition of a task: initial parameters, a loss, and three data splits."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from meta_opt.types import PyTree

Arrays = dict[str, Any]
"""Examples of one split: arrays, or pytrees of arrays, of equal leading length."""


def count_of(arrays: Arrays) -> int:
    """Returns the number of examples.

    >>> count_of({"x": (jax.numpy.zeros((3, 2)), jax.numpy.zeros(3))})
    3
    """
    return len(jax.tree.leaves(arrays)[0])


def rows_of(arrays: Arrays, picks: jax.Array) -> Arrays:
    """Returns the examples at indices ``picks``, int [B]."""
    return jax.tree.map(lambda x: x[picks], arrays)


class Splits(NamedTuple):
    """Disjoint examples of a task.

    Attributes:
        train: examples that the inner optimizer trains on.
        validation: examples for choosing settings, and for computing ``feedback``
            during training.
        test: examples for evaluating the trained parameters.
    """

    train: Arrays
    validation: Arrays
    test: Arrays


@dataclasses.dataclass(frozen=True)
class Task:
    """A small learning problem; its functions are pure, so that it can be vmapped.

    Attributes:
        name: name of the family.
        dataset: name of the data set, which determines the split of the meta-data.
        init: ``key -> params`` initialises the parameters; pretrained parameters may
            ignore the key.
        loss: ``(params, arrays) -> (loss, error)``, both float32 []: the loss and the
            error rate in [0, 1] on a batch of examples.
        splits: the data.
        batch_size: number of examples per inner step.
        stacked: pattern of paths of scan-stacked parameters, for the optimizer.
        provides_loss: whether the loss is passed to the optimizer.
        feedback_every: steps between values of ``feedback``; 0 for none.
        horizons: smallest and largest number of inner steps.
        train_loss: ``(params, arrays, key) -> (loss, error)``, the training loss if it
            differs from ``loss`` by dropout, data augmentation or label smoothing. None
            trains on ``loss``.
    """

    name: str
    dataset: str
    init: Callable[[jax.Array], PyTree]
    loss: Callable[[PyTree, Arrays], tuple[jax.Array, jax.Array]]
    splits: Splits
    batch_size: int = 32
    stacked: str | None = None
    provides_loss: bool = True
    feedback_every: int = 0
    horizons: tuple[int, int] = (40, 300)
    train_loss: (
        Callable[[PyTree, Arrays, jax.Array], tuple[jax.Array, jax.Array]] | None
    ) = None

    def loss_on_batch(
        self, params: PyTree, arrays: Arrays, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns loss and error of a training batch; ``key`` is for `train_loss`."""
        if self.train_loss is None:
            return self.loss(params, arrays)
        return self.train_loss(params, arrays, key)


BuildTask = Callable[[str | None], Task]
"""Builds a task from the data in a folder; None for the default folder."""
