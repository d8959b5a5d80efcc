"""What a task is: initial parameters, a loss, and three disjoint parts of data."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from meta_opt.types import PyTree

Arrays = dict[str, Any]
"""Arrays, or pytrees of them, of equal leading length: the examples of one split."""


def count_of(arrays: Arrays) -> int:
    """How many examples there are.

    >>> count_of({"x": (jax.numpy.zeros((3, 2)), jax.numpy.zeros(3))})
    3
    """
    return len(jax.tree.leaves(arrays)[0])


def rows_of(arrays: Arrays, picks: jax.Array) -> Arrays:
    """The examples at ``picks``, int [B]."""
    return jax.tree.map(lambda x: x[picks], arrays)


class Splits(NamedTuple):
    """Disjoint examples of a task.

    Attributes:
        train: examples that the inner optimizer trains on.
        validation: examples that settings are selected by, and ``feedback`` is computed
            on during training.
        test: examples that the trained parameters are evaluated on.
    """

    train: Arrays
    validation: Arrays
    test: Arrays


@dataclasses.dataclass(frozen=True)
class Task:
    """A small learning problem, pure in all its parts so that it can be vmapped.

    Attributes:
        name: name of the family.
        dataset: dataset of the examples; splits into meta-training and meta-test
            are by this name.
        init: key to initial parameters; pretrained ones may ignore the key.
        loss: ``(params, arrays) -> (loss, error)``, both float32 []: the training loss
            and the error rate in [0, 1] on a batch of examples.
        splits: the data.
        batch_size: examples of an inner step.
        stacked: pattern of scan-stacked parameters, for the optimizer.
        provides_loss: whether the optimizer gets the loss.
        feedback_every: steps between values of ``feedback``; 0 for none.
        horizons: smallest and largest number of inner steps.
        train_loss: ``(params, arrays, key) -> (loss, error)`` of a training batch where
            it differs from ``loss``: dropout, input augmentation, label smoothing.
            None trains on ``loss``.
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
        """Loss and error of a training batch; ``key`` drives dropout and the like."""
        if self.train_loss is None:
            return self.loss(params, arrays)
        return self.train_loss(params, arrays, key)
