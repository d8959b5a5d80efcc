"""ResNet with bottleneck blocks, version 1.5.

He et al. 2015 (arXiv:1512.03385). Version 1.5 has the stride of a block in its 3 x 3
convolution rather than in the first 1 x 1 one, like ResNet-50 in torchvision, timm and
Hugging Face.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from meta_opt.models.convnets.base import ConvNet, ConvNetConfig, Stage
from meta_opt.models.settings import check_counts

_REDUCTION = 4
"""Ratio of a block's output channels to those of its 3 x 3 convolution."""
_EPSILON, _MOMENTUM = 1e-5, 0.9
_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ConvNetConfig):
    """Architecture and numerics; the defaults are ResNet-50's.

    Attributes:
        depths: number of blocks of each stage.
        widths: output channels of each stage; multiples of 4.
        stem: number of channels of the first convolution.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem: int = 64

    def __post_init__(self) -> None:
        """Raises ValueError for widths that are not divisible by the expansion."""
        super().__post_init__()
        check_counts(self, "stem")
        if any(width % _REDUCTION for width in self.widths):
            raise ValueError(f"widths={self.widths} must be multiples of {_REDUCTION}")


class ConvNorm(nnx.Module):
    """A convolution without bias, a batch norm and an optional ReLU."""

    def __init__(
        self,
        config: ResNetConfig,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        activate: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        self.activate, self.stride = activate, stride
        types: dict[str, Any] = {
            "dtype": jnp.dtype(config.dtype),
            "param_dtype": jnp.dtype(config.param_dtype),
        }
        self.conv: nnx.Module
        if kernel == 1:
            # A 1 x 1 convolution as a linear layer, which supports adapters.
            self.conv = config.linear(inputs, outputs, rngs, use_bias=False)
        else:
            # Symmetric padding, unlike SAME with a stride.
            self.conv = nnx.Conv(
                inputs,
                outputs,
                (kernel, kernel),
                stride,
                padding=kernel // 2,
                use_bias=False,
                kernel_init=_INIT,
                **types,
                rngs=rngs,
            )
        self.norm = nnx.BatchNorm(
            outputs,
            use_running_average=True,
            momentum=_MOMENTUM,
            epsilon=_EPSILON,
            **types,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, C] to [B, h', w', C']."""
        if not isinstance(self.conv, nnx.Conv):
            x = x[:, :: self.stride, :: self.stride]
        x = self.norm(self.conv(x))  # type: ignore[operator]
        return nnx.relu(x) if self.activate else x


class Stem(nnx.Module):
    """A 7 x 7 convolution and 3 x 3 max pooling, both with stride 2."""

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs) -> None:
        self.conv = ConvNorm(config, 3, config.stem, kernel=7, stride=2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, 3] to [B, h / 4, w / 4, C]."""
        pads = ((1, 1), (1, 1))
        return nnx.max_pool(self.conv(x), (3, 3), strides=(2, 2), padding=pads)


class Bottleneck(nnx.Module):
    """Bottleneck block: reduce, convolve, expand; projects the shortcut if needed."""

    def __init__(
        self,
        config: ResNetConfig,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        hidden = outputs // _REDUCTION
        self.reduce = ConvNorm(config, inputs, hidden, rngs=rngs)
        self.filter = ConvNorm(
            config, hidden, hidden, kernel=3, stride=stride, rngs=rngs
        )
        self.expand = ConvNorm(config, hidden, outputs, activate=False, rngs=rngs)
        if stride > 1 or inputs != outputs:
            self.shortcut = ConvNorm(
                config, inputs, outputs, stride=stride, activate=False, rngs=rngs
            )

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps [B, h, w, C] to [B, h', w', C']; ``key`` is unused."""
        del key
        y = self.expand(self.filter(self.reduce(x)))
        return nnx.relu(y + (self.shortcut(x) if hasattr(self, "shortcut") else x))


class ResNet(ConvNet):
    """Maps images to a feature grid of 1/32 of their side.

    Args:
        config: architecture and numerics.
        rngs: random streams; ``params`` initialises the parameters.

    Example:
        >>> config = ResNetConfig(depths=(1, 1), widths=(8, 16), stem=4)
        >>> model = ResNet(config, rngs=nnx.Rngs(0))
        >>> model.features(jnp.zeros((2, 32, 32, 3), jnp.uint8)).shape
        (2, 4, 4, 16)
    """

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs) -> None:
        stem, inputs, stages = Stem(config, rngs=rngs), config.stem, []
        for i, (depth, width) in enumerate(
            zip(config.depths, config.widths, strict=True)
        ):
            blocks: list[nnx.Module] = []
            for j in range(depth):
                stride = 2 if i and not j else 1
                blocks.append(Bottleneck(config, inputs, width, stride, rngs=rngs))
                inputs = width
            stages.append(Stage(blocks))
        super().__init__(config, stem, stages)
