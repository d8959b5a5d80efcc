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
    # A smaller version of the same network, for models that train in a minute.
    "efficientnet_nano": EfficientNetConfig(
        stem=16, stages=(Stage(1, 3, 2, 2, 24), Stage(1, 3, 2, 2, 48)), head=128
    ),
}
"""Architectures of the convolutional towers by name."""


class ImageTower(Protocol):
    """The interface of a generative model's image tower."""

    def features(self, image: jax.Array) -> jax.Array:
        """[B, h, w, 3], uint8 or float in [0, 1], to features [B, P, D]."""

    def project(self, z: jax.Array) -> jax.Array:
        """Projects features [B, P, D] to the width of the decoder."""


def pixels_a_feature(name: str) -> int:
    """Stride of a convolutional tower: side in pixels per feature.

    Args:
        name: one of `CONVNETS`.

    >>> pixels_a_feature("efficientnet_lite0")
    32
    """
    # The stem halves the side, too.
    return 2 * math.prod(stage.stride for stage in CONVNETS[name].stages)


class ConvTower(nnx.Module):
    """EfficientNet's final feature grid as a sequence, with a linear projection.

    Batch norms always use their running statistics, also in training.

    Args:
        name: one of `CONVNETS`.
        image_size: side of the images in pixels.
        outputs: output width of the projection.
        numerics: dtypes and rematerialisation.
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
            ValueError: if the images do not have the model's shape.
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
        """Projects features [B, P, D] to [B, P, outputs]."""
        return self.projection(z)
