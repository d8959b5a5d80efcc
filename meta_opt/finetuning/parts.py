"""What runs of all kinds of models share: evaluation of a model in parts."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from meta_opt.finetuning.loop import Evaluate
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
