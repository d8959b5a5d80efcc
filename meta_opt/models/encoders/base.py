"""The interface of encoders of a multimodal model."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from flax import nnx

from meta_opt.types import PyTree


@runtime_checkable
class Encoder(Protocol):
    """A module that encodes one modality as a sequence of features.

    ``config.width`` is their width D.
    """

    def tokens(self, inputs: Any) -> tuple[jax.Array, jax.Array]:
        """Features [B, S, D], and a mask bool [B, S], false at padding."""


class Halves(NamedTuple):
    """A split encoder: ``upper.tokens(lower(inputs))`` equals ``tokens(inputs)``.

    Attributes:
        lower: function from inputs to a pytree of arrays [B, ...], which are constant
            while only the upper half is trained.
        upper: the trained layers, an `Encoder`.
    """

    lower: Callable[[Any], PyTree]
    upper: nnx.Module


@runtime_checkable
class Divisible(Encoder, Protocol):
    """An encoder whose lower layers can be frozen."""

    def halves(self, trained: int) -> Halves:
        """Splits the encoder below the last ``trained`` layers.

        Raises:
            ValueError: ``trained`` is below one or above the number of layers.
        """


def check_trained(trained: int, layers: int, encoder: str) -> None:
    """Raises ValueError unless ``trained`` is from 1 to the number of layers."""
    if not 1 <= trained <= layers:
        raise ValueError(
            f"{encoder} has {layers} layers, so that 1 to {layers} of them can train, "
            f"not {trained}"
        )
