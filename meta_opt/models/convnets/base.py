"""Base classes of convolutional networks: input normalisation, stem and stages."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from meta_opt.models.encoders.base import Halves, check_trained
from meta_opt.models.layers import Numerics
from meta_opt.models.settings import MAX_SIZE, is_count

MAX_BLOCKS = 72
"""Largest number of blocks of a network, which are traced individually; ResNet-200 has
66."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ConvNetConfig(Numerics):
    """Architecture and numerics of a network of stages.

    Attributes:
        depths: number of blocks of each stage.
        widths: output channels of each stage; the last is D.
        image_mean: mean of the channels, for pixels in [0, 1].
        image_std: standard deviation of the channels.
    """

    depths: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Raises ValueError for stages without width or blocks."""
        super().__post_init__()
        if not self.depths or len(self.depths) != len(self.widths):
            raise ValueError(
                f"depths={self.depths} and widths={self.widths} must have one number "
                "for each stage, and there must be a stage"
            )
        if not all(is_count(n) for n in (*self.depths, *self.widths)):
            raise ValueError(
                f"depths={self.depths} and widths={self.widths} must be integers "
                f"from 1 to {MAX_SIZE}"
            )
        if sum(self.depths) > MAX_BLOCKS:
            raise ValueError(f"depths={self.depths} are more than {MAX_BLOCKS} blocks")

    @property
    def width(self) -> int:
        """Channels of the features, D."""
        return self.widths[-1]

    @property
    def pooled_norm_epsilon(self) -> float | None:
        """Epsilon of the layer norm before the head; None without such a norm."""
        return None


class Stage(nnx.Module):
    """Blocks at one resolution; the subclass or the first block downsamples.

    Args:
        blocks: modules that are called as ``block(x, key)``.
    """

    def __init__(self, blocks: list[nnx.Module]) -> None:
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps [B, h, w, C] to [B, h', w', C']; a key enables stochastic depth."""
        for i, block in enumerate(self.blocks):
            x = block(x, None if key is None else jax.random.fold_in(key, i))
        return x


class Stages(nnx.Module):
    """The last stages of a network, applied to the output of the lower stages.

    Args:
        config: configuration of the whole network.
        stages: the last stages.
    """

    def __init__(self, config: ConvNetConfig, stages: list[Stage]) -> None:
        self.config = config
        self.stages = nnx.List(stages)

    def features(self, inputs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Computes the features of the last stage.

        Args:
            inputs: feature grid [B, h, w, C].
            key: random key that enables stochastic depth; None for inference.

        Returns:
            [B, h', w', D] in the computation's dtype.
        """
        x = inputs.astype(self.config.dtype)
        for i, stage in enumerate(self.stages):
            x = stage(x, None if key is None else jax.random.fold_in(key, i))
        return x

    def tokens(
        self, inputs: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`features` as a sequence [B, P, D], with an all-true mask bool [B, P]."""
        grid = self.features(inputs, key)
        x = grid.reshape(len(grid), -1, grid.shape[-1])
        return x, jnp.ones(x.shape[:2], bool)


class ConvNet(Stages):
    """A whole network: pixels, a stem, and stages.

    Batch norms use their running statistics; after ``train()`` of a stage they use
    batch statistics and update the running ones.

    Args:
        config: architecture and numerics.
        stem: module from normalised pixels to the input of the first stage.
        stages: all stages.
    """

    def __init__(
        self, config: ConvNetConfig, stem: nnx.Module, stages: list[Stage]
    ) -> None:
        super().__init__(config, stages)
        self.stem = stem

    def grid(self, image: jax.Array) -> jax.Array:
        """The output of the stem.

        Args:
            image: uint8 or float (0 to 255) [B, h, w, 3].

        Raises:
            ValueError: if the input is not a batch of images.
        """
        if image.ndim != 4 or image.shape[3] != 3:
            raise ValueError(
                f"images have shape {image.shape}; the model takes [B, h, w, 3]"
            )
        mean, std = (
            jnp.asarray(x, jnp.float32)[None, None, None]
            for x in (self.config.image_mean, self.config.image_std)
        )
        x = (image.astype(jnp.float32) / 255 - mean) / std
        return self.stem(x.astype(self.config.dtype))  # type: ignore[operator]

    def features(self, inputs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Features of uint8 or float (0 to 255) [B, h, w, 3]: [B, h / 32, w / 32, D].

        Args:
            inputs: the images.
            key: random key that enables stochastic depth; None for inference.

        Raises:
            ValueError: if the input is not a batch of images.
        """
        return super().features(self.grid(inputs), key)

    def halves(self, trained: int) -> Halves:
        """Splits the network below the last ``trained`` stages; see `Divisible`."""
        check_trained(trained, len(self.stages), type(self).__name__)
        lower = nnx.clone(self)
        lower.stages = nnx.List(lower.stages[:-trained])
        upper = [nnx.clone(stage) for stage in self.stages[-trained:]]
        return Halves(lower.features, Stages(self.config, upper))

    def with_upper(self, upper: Stages) -> "ConvNet":
        """This network with its last stages replaced by trained ones of `halves`."""
        whole = nnx.clone(self)
        kept = whole.stages[: len(whole.stages) - len(upper.stages)]
        whole.stages = nnx.List([*kept, *upper.stages])
        return whole
