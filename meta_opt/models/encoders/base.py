"""What an encoder must have to be a part of a multimodal model."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from flax import nnx

from meta_opt.types import PyTree


@runtime_checkable
class Encoder(Protocol):
    """A module that makes a sequence of features out of one modality.

    Its ``config.width`` is their width D.
    """

    def tokens(self, inputs: Any) -> tuple[jax.Array, jax.Array]:
        """Features [B, S, D], and bool [B, S], false where there is nothing."""


class Halves(NamedTuple):
    """An encoder cut in two: ``upper.tokens(lower(inputs))`` is its ``tokens(inputs)``.

    Attributes:
        lower: from inputs to a pytree of arrays [B, ...], which do not change while
            only the upper half trains.
        upper: the layers that train; an `Encoder`.
    """

    lower: Callable[[Any], PyTree]
    upper: nnx.Module


@runtime_checkable
class Divisible(Encoder, Protocol):
    """An encoder whose lower layers can be left out of training."""

    def halves(self, trained: int) -> Halves:
        """Cuts it below the last ``trained`` layers.

        Raises:
            ValueError: fewer than one, or more than there are.
        """


def check_trained(trained: int, layers: int, encoder: str) -> None:
    """Raises ValueError unless an encoder has that many layers to train."""
    if not 1 <= trained <= layers:
        raise ValueError(
            f"{encoder} has {layers} layers, so that 1 to {layers} of them can train, "
            f"not {trained}"
        )
