"""A convolutional image tower: a grid of features as tokens, and a projection."""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from meta_opt.models.encoders.efficientnet import (
    EfficientNet,
    EfficientNetConfig,
    Stage,
)
from meta_opt.models.layers import Numerics

CONVNETS: dict[str, EfficientNetConfig] = {
    "efficientnet_lite0": EfficientNetConfig(),
    # Of the same parts, for models that are trained in a minute.
    "efficientnet_nano": EfficientNetConfig(
        stem=16, stages=(Stage(1, 3, 2, 2, 24), Stage(1, 3, 2, 2, 48)), head=128
    ),
}
"""Architectures of the convolutional towers by name."""


class ImageTower(Protocol):
    """What a generative model asks of its image tower."""

    def features(self, image: jax.Array) -> jax.Array:
        """[B, h, w, 3], uint8 or float in [0, 1], to features [B, P, D]."""

    def project(self, z: jax.Array) -> jax.Array:
        """Features [B, P, D] to the width of what reads them."""


def pixels_a_feature(name: str) -> int:
    """Pixels a side that each feature of a convolutional tower stands for.

    Args:
        name: one of `CONVNETS`.

    >>> pixels_a_feature("efficientnet_lite0")
    32
    """
    # The stem halves the side too.
    return 2 * math.prod(stage.stride for stage in CONVNETS[name].stages)


class ConvTower(nnx.Module):
    """EfficientNet's last grid of features, row by row, projected with a bias.

    Batch norms use their running statistics, in training too.

    Args:
        name: one of `CONVNETS`.
        image_size: pixels a side.
        outputs: width of the projection.
        numerics: types.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(
        self,
        name: str,
        image_size: int,
        outputs: int,
        numerics: Numerics,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        of_model = {
            field.name: getattr(numerics, field.name)
            for field in dataclasses.fields(Numerics)
        }
        config = dataclasses.replace(CONVNETS[name], **of_model)
        self.image_size = image_size
        self.encoder = EfficientNet(config, rngs=rngs)
        self.projection = numerics.linear(config.width, outputs, rngs)

    def features(self, image: jax.Array) -> jax.Array:
        """[B, h, w, 3], uint8 or float in [0, 1], to features [B, P, D].

        Raises:
            ValueError: images of another shape than the model's.
        """
        size = self.image_size
        if image.ndim != 4 or image.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images have shape {image.shape}; the model takes "
                f"[B, {size}, {size}, 3]"
            )
        if image.dtype != jnp.uint8:
            image = 255 * image
        x, _ = self.encoder.tokens(image)
        return x

    def project(self, z: jax.Array) -> jax.Array:
        """Features [B, P, D] to [B, P, outputs]."""
        return self.projection(z)
