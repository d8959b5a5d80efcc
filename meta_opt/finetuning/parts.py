"""What runs of all kinds of models share: evaluation of parts, and epochs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from meta_opt.finetuning.loop import Evaluate
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.types import PyTree

Score: TypeAlias = Callable[[Any], Mapping[str, float]]
"""Metrics of a model on one split."""


class Mergeable(Protocol):
    """A model in parts."""

    def merge(self, params: PyTree, frozen: PyTree) -> Any:
        """The module with these arrays."""


def make_evaluate(model: Mergeable, score: Score) -> Evaluate:
    """Returns the evaluation of a model in parts, as the loop calls it.

    Args:
        model: its structure is used, its arrays are not.
        score: the evaluation of a module.
    """
    return lambda params, frozen: score(model.merge(params, frozen))


def informed(
    optimizer: OptimizerConfig, loop: LoopConfig, examples: int
) -> OptimizerConfig:
    """The optimizer's settings, with the epochs that follow from the run's.

    Args:
        optimizer: what is given stays.
        loop: length and batch size.
        examples: that are trained on.

    >>> informed(OptimizerConfig("learned"), LoopConfig(10, 4), 20).epochs
    2.0
    """
    if optimizer.epochs is not None:
        return optimizer
    epochs = loop.num_steps * loop.batch_size / examples
    return dataclasses.replace(optimizer, epochs=epochs)
