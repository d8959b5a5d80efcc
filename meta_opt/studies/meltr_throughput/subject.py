"""A model with several losses and synthetic data, as a workload."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from meta_opt.data.array_batches import array_batches
from meta_opt.parallel.sharding import FSDP_RULES, Rule
from meta_opt.workloads.workload import (
    Losses,
    LossesFn,
    LossFn,
    SplitModule,
    Workload,
)

SPECIAL = (0, 1, 2)
"""Token IDs of padding, start and end; the mask token follows."""
MASK = 3
FIRST_WORD = 4


class Subject(NamedTuple):
    """A model with its losses.

    Attributes:
        create: function of a random key that creates the model; it is traced.
        split: function that splits a model, abstract or concrete, into its parts.
        names: names of the T losses, the primary one first.
        losses_fn: function of the parts that returns a `LossesFn`.
        primary_fn: function of the parts that returns the primary loss alone.
        batch: ``(generator, B) -> arrays [B, ...]``.
        rules: sharding rules of the parameters.
    """

    create: Callable[[jax.Array], nnx.Module]
    split: Callable[[Any], SplitModule]
    names: tuple[str, ...]
    losses_fn: Callable[[SplitModule], LossesFn]
    primary_fn: Callable[[SplitModule], LossFn]
    batch: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    rules: Sequence[Rule] = FSDP_RULES

    def workload(self, *, concrete: bool, examples: int = 0) -> Workload:
        """Returns the model as a workload.

        Args:
            concrete: whether to create arrays; otherwise they are abstract.
            examples: N, number of examples for training, and for meta-steps.
        """
        create = self.create
        key = jax.random.key(0)
        model = nnx.jit(create)(key) if concrete else nnx.eval_shape(create, key)
        module = self.split(model)
        data = self.batch(np.random.default_rng(0), examples)
        batches = partial(array_batches, data)
        return Workload(
            params=module.params,
            frozen=module.frozen,
            loss_fn=self.primary_fn(module),
            train_batches=batches,
            meta_batches=batches,
            losses=Losses(self.names, self.names[0], self.losses_fn(module)),
            rules=self.rules,
        )


def random_tokens(
    rng: np.random.Generator, shape: tuple[int, ...], size: int
) -> np.ndarray:
    """Returns random int32 token IDs below ``size``, without special tokens."""
    return rng.integers(FIRST_WORD, size, shape).astype(np.int32)


def random_pixels(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Returns random pixels, uint8."""
    return rng.integers(0, 256, shape, np.uint8)
