"""EfficientNet-Lite0: mobile inverted bottlenecks without squeeze-and-excitation.

Tan and Le 2019 (arXiv:1905.11946); Lite: ReLU6 throughout, stem and head not scaled.
Batch norms always use their running statistics, also in training: fine-tuning on few
examples would degrade them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models.depthwise import DepthwiseConv
from meta_opt.models.encoders.base import Halves, check_trained
from meta_opt.models.layers import Linear, Numerics

_EPSILON = 1e-3
_MEAN, _SCALE = 127.0, 128.0
"""Channel statistics of pixels from 0 to 255."""


class Stage(NamedTuple):
    """A sequence of blocks of the same kind, the first of which has the stride.

    Attributes:
        repeats: number of blocks.
        kernel: side of the depthwise filters in pixels.
        stride: stride of the first block.
        expansion: ratio of hidden to input channels.
        channels: number of output channels.
    """

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig(Numerics):
    """Architecture and numerics; the defaults are EfficientNet-Lite0's.

    Attributes:
        stem: number of channels of the first convolution.
        stages: stages of blocks.
        head: D, number of channels of the features.
    """

    stem: int = 32
    stages: tuple[Stage, ...] = (
        Stage(1, 3, 1, 1, 16),
        Stage(2, 3, 2, 6, 24),
        Stage(2, 5, 2, 6, 40),
        Stage(3, 3, 2, 6, 80),
        Stage(3, 5, 1, 6, 112),
        Stage(4, 5, 2, 6, 192),
        Stage(1, 3, 1, 6, 320),
    )
    head: int = 1280

    @property
    def width(self) -> int:
        """Channels of the features."""
        return self.head


class FrozenBatchNorm(nnx.Module):
    """Batch norm with fixed statistics: ``scale (x - mean) / sqrt(var + e) + bias``."""

    def __init__(self, channels: int, dtype: jnp.dtype) -> None:
        self.scale = nnx.Param(jnp.ones(channels, dtype))
        self.bias = nnx.Param(jnp.zeros(channels, dtype))
        self.mean = nnx.BatchStat(jnp.zeros(channels, dtype))
        self.var = nnx.BatchStat(jnp.ones(channels, dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to the same shape."""
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + _EPSILON)
        shift = self.bias[...] - self.mean[...] * factor
        rank = (1,) * (x.ndim - 1)
        factor, shift = factor.reshape(*rank, -1), shift.reshape(*rank, -1)
        return x * factor.astype(x.dtype) + shift.astype(x.dtype)


class ConvNorm(nnx.Module):
    """A convolution without bias, a batch norm and an optional ReLU6."""

    def __init__(
        self,
        config: EfficientNetConfig,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        activate: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        self.activate = activate
        options: dict[str, Any] = {
            "use_bias": False,
            "dtype": jnp.dtype(config.dtype),
            "param_dtype": jnp.dtype(config.param_dtype),
        }
        self.conv: DepthwiseConv | Linear | nnx.Conv
        if depthwise:
            self.conv = DepthwiseConv(config, inputs, kernel, stride, rngs=rngs)
        elif kernel == 1:
            # A 1 x 1 convolution as a linear layer, which supports adapters.
            self.conv = Linear(inputs, outputs, **options, rngs=rngs)
        else:
            self.conv = nnx.Conv(
                inputs,
                outputs,
                (kernel, kernel),
                stride,
                padding="SAME",
                **options,
                rngs=rngs,
            )
        self.norm = FrozenBatchNorm(outputs, jnp.dtype(config.param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h', w', C']."""
        x = self.norm(self.conv(x))
        return jnp.clip(x, 0, 6) if self.activate else x


class Bottleneck(nnx.Module):
    """Inverted bottleneck: expand, depthwise convolution, project.

    With a residual connection if input and output have the same shape.
    """

    def __init__(
        self,
        config: EfficientNetConfig,
        inputs: int,
        stage: Stage,
        stride: int,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        hidden = inputs * stage.expansion
        self.residual = stride == 1 and inputs == stage.channels
        if stage.expansion > 1:
            self.expand = ConvNorm(config, inputs, hidden, rngs=rngs)
        self.depthwise = ConvNorm(
            config,
            hidden,
            hidden,
            kernel=stage.kernel,
            stride=stride,
            depthwise=True,
            rngs=rngs,
        )
        self.project = ConvNorm(
            config, hidden, stage.channels, activate=False, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h', w', C']."""
        y = self.expand(x) if hasattr(self, "expand") else x
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class EfficientNet(nnx.Module):
    """Maps images to a feature grid of 1/32 of their side.

    Args:
        config: architecture and numerics.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(self, config: EfficientNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.stem = ConvNorm(config, 3, config.stem, kernel=3, stride=2, rngs=rngs)
        blocks, channels = [], config.stem
        for stage in config.stages:
            for i in range(stage.repeats):
                stride = stage.stride if i == 0 else 1
                blocks.append(Bottleneck(config, channels, stage, stride, rngs=rngs))
                channels = stage.channels
        self.blocks = nnx.List(blocks)
        self.head = ConvNorm(config, channels, config.head, rngs=rngs)

    def features(self, image: jax.Array) -> jax.Array:
        """Features of uint8 or float (0 to 255) [B, h, w, 3]: [B, h / 32, w / 32, D].

        Raises:
            ValueError: if the input is not a batch of images.
        """
        return self.head(self._grid(image))

    def _grid(self, image: jax.Array) -> jax.Array:
        if image.ndim != 4 or image.shape[3] != 3:
            raise ValueError(
                f"images have shape {image.shape}; the model takes [B, h, w, 3]"
            )
        x = (image.astype(jnp.float32) - _MEAN) / _SCALE
        x = self.stem(x.astype(self.config.dtype))
        for block in self.blocks:
            x = block(x)
        return x

    def tokens(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`features` as a sequence [B, P, D], with an all-true mask bool [B, P]."""
        return _sequence(self.features(inputs))

    def halves(self, trained: int) -> Halves:
        """Splits the network below the last ``trained`` blocks; see `Divisible`."""
        check_trained(trained, len(self.blocks), "EfficientNet")
        lower = nnx.clone(self)
        lower.blocks = nnx.List(lower.blocks[:-trained])
        top = EfficientNetTop(self.config, self.blocks[-trained:], self.head)
        return Halves(lower._grid, top)

    def with_upper(self, upper: "EfficientNetTop") -> "EfficientNet":
        """This network with its last blocks replaced by trained ones of `halves`."""
        whole = nnx.clone(self)
        kept = whole.blocks[: len(whole.blocks) - len(upper.blocks)]
        whole.blocks = nnx.List([*kept, *upper.blocks])
        whole.head = upper.head
        return whole

    def __call__(self, image: jax.Array) -> jax.Array:
        """Mean of the features, float32 [B, D]."""
        return jnp.mean(self.features(image), axis=(1, 2)).astype(jnp.float32)


class EfficientNetTop(nnx.Module):
    """The last blocks, and the head.

    Args:
        config: configuration of the whole network.
        blocks: the last blocks.
        head: head of the whole network.
    """

    def __init__(
        self, config: EfficientNetConfig, blocks: Sequence[Bottleneck], head: ConvNorm
    ) -> None:
        self.config = config
        self.blocks = nnx.List([nnx.clone(block) for block in blocks])
        self.head = nnx.clone(head)

    def tokens(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """From a grid of features [B, h, w, C] to a sequence [B, P, D], all real."""
        x = inputs.astype(self.config.dtype)
        for block in self.blocks:
            x = block(x)
        return _sequence(self.head(x))


def _sequence(grid: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = grid.reshape(len(grid), -1, grid.shape[-1])
    return x, jnp.ones(x.shape[:2], bool)


def efficientnet_parameters(
    tensors: Mapping[str, np.ndarray], config: EfficientNetConfig
) -> dict[str, np.ndarray]:
    """Converts the tensors of the PyTorch port, without its classifier, to our paths.

    Args:
        tensors: tensors of the file by name.
        config: the architecture.
    """
    places = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    number = 0
    for stage in config.stages:
        for _ in range(stage.repeats):
            theirs, norm = f"_blocks.{number}", 0
            parts = [("depthwise", "_depthwise_conv"), ("project", "_project_conv")]
            if stage.expansion > 1:
                parts.insert(0, ("expand", "_expand_conv"))
            else:
                norm = 1
            for ours, conv in parts:
                places[f"blocks/{number}/{ours}"] = (
                    f"{theirs}.{conv}",
                    f"{theirs}._bn{norm}",
                )
                norm += 1
            number += 1
    found = {}
    for ours, (conv, batch_norm) in places.items():
        kernel = tensors[f"{conv}.weight"].transpose(2, 3, 1, 0)
        pointwise = kernel.shape[:2] == (1, 1)
        found[f"{ours}/conv/kernel"] = kernel[0, 0] if pointwise else kernel
        for leaf, theirs in (
            ("scale", "weight"),
            ("bias", "bias"),
            ("mean", "running_mean"),
            ("var", "running_var"),
        ):
            found[f"{ours}/norm/{leaf}"] = tensors[f"{batch_norm}.{theirs}"]
    return found
