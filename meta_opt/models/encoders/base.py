"""What an encoder must have to be a part of a multimodal model."""

from typing import Protocol, runtime_checkable

import jax


@runtime_checkable
class Encoder(Protocol):
    """A module that makes a sequence of features out of one modality.

    Its ``config.width`` is their width D.
    """

    def tokens(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features [B, S, D], and bool [B, S], false where there is nothing."""
