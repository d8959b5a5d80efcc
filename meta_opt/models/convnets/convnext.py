"""ConvNeXt: a convolutional network with the design of a vision transformer.

Liu et al. 2022 (arXiv:2201.03545), with layer scale (Touvron et al. 2021,
arXiv:2103.17239) and stochastic depth (Huang et al. 2016, arXiv:1603.09382).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models.convnets.base import ConvNet, ConvNetConfig, Stage
from meta_opt.models.depthwise import DepthwiseConv
from meta_opt.models.settings import check_positive

_KERNEL, _EXPANSION, _PATCH = 7, 4, 4
_INIT = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig(ConvNetConfig):
    """Architecture and numerics; the defaults are ConvNeXt-T's.

    Attributes:
        depths: number of blocks of each stage.
        widths: output channels of each stage.
        drop_path: stochastic-depth rate (per example) of the last block's branch; it
            increases linearly from 0 at the first block.
        layer_scale: initial layer scale of each block's branch.
        norm_epsilon: epsilon of the layer norms.
        head_epsilon: epsilon of the layer norm of pooled features, 1e-12 in Hugging
            Face's configurations and 1e-6 in timm's models.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    drop_path: float = 0.0
    layer_scale: float = 1e-6
    norm_epsilon: float = 1e-6
    head_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        super().__post_init__()
        check_positive(self, "norm_epsilon", "head_epsilon")
        if not isinstance(self.drop_path, int | float) or not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path!r} must be in [0, 1)")

    @property
    def pooled_norm_epsilon(self) -> float | None:
        """Epsilon of the layer norm between pooling and head."""
        return self.head_epsilon

    @property
    def types(self) -> dict[str, Any]:
        """The dtypes as arguments of Flax layers."""
        return {
            "dtype": jnp.dtype(self.dtype),
            "param_dtype": jnp.dtype(self.param_dtype),
        }


def _norm(config: ConvNeXtConfig, channels: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        channels, epsilon=config.norm_epsilon, **config.types, rngs=rngs
    )


def _patches(
    config: ConvNeXtConfig, inputs: int, outputs: int, side: int, rngs: nnx.Rngs
) -> nnx.Conv:
    """A convolution over non-overlapping patches of ``side`` pixels."""
    return nnx.Conv(
        inputs,
        outputs,
        (side, side),
        side,
        padding="VALID",
        kernel_init=_INIT,
        **config.types,
        rngs=rngs,
    )


class Stem(nnx.Module):
    """A convolution over non-overlapping 4 x 4 patches, and a layer norm."""

    def __init__(self, config: ConvNeXtConfig, *, rngs: nnx.Rngs) -> None:
        self.conv = _patches(config, 3, config.widths[0], _PATCH, rngs)
        self.norm = _norm(config, config.widths[0], rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, h, w, 3] to [B, h / 4, w / 4, C]."""
        return self.norm(self.conv(x))


class Block(nnx.Module):
    """Residual block: depthwise convolution, MLP, layer scale, stochastic depth.

    Args:
        config: configuration of the network.
        channels: C, number of channels.
        drop: stochastic-depth rate: probability that the branch of an example is
            dropped in training.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(
        self, config: ConvNeXtConfig, channels: int, drop: float, *, rngs: nnx.Rngs
    ) -> None:
        hidden = _EXPANSION * channels
        self.depthwise = DepthwiseConv(
            config, channels, _KERNEL, 1, use_bias=True, rngs=rngs
        )
        self.norm = _norm(config, channels, rngs)
        self.up = config.linear(channels, hidden, rngs)
        self.down = config.linear(hidden, channels, rngs)
        self.layer_scale = nnx.Param(
            jnp.full(channels, config.layer_scale, jnp.dtype(config.param_dtype))
        )
        # One Bernoulli sample per example.
        self.drop = nnx.Dropout(drop, broadcast_dims=(1, 2, 3))

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps [B, h, w, C] to the same shape; a key enables stochastic depth."""
        y = self.up(self.norm(self.depthwise(x)))
        y = self.down(jax.nn.gelu(y, approximate=False))
        y = y * self.layer_scale[...].astype(y.dtype)[None, None, None]
        return x + self.drop(y, deterministic=key is None, rngs=key)


class ConvNeXtStage(Stage):
    """Downsampling by a layer norm and a 2 x 2 convolution, then blocks.

    Args:
        config: configuration of the network.
        inputs: number of input channels; 0 for the first stage, without downsampling.
        outputs: number of output channels.
        drops: stochastic-depth rate of each block, see `Block`.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(
        self,
        config: ConvNeXtConfig,
        inputs: int,
        outputs: int,
        drops: tuple[float, ...],
        *,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__([Block(config, outputs, drop, rngs=rngs) for drop in drops])
        if inputs:
            self.norm = _norm(config, inputs, rngs)
            self.conv = _patches(config, inputs, outputs, 2, rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps [B, h, w, C] to [B, h', w', C']; a key enables stochastic depth."""
        if hasattr(self, "conv"):
            x = self.conv(self.norm(x))
        return super().__call__(x, key)


class ConvNeXt(ConvNet):
    """Maps images to a feature grid of 1/32 of their side.

    Args:
        config: architecture and numerics.
        rngs: random streams; ``params`` initialises the parameters.

    Example:
        >>> config = ConvNeXtConfig(depths=(1, 1), widths=(8, 16))
        >>> model = ConvNeXt(config, rngs=nnx.Rngs(0))
        >>> model.features(jnp.zeros((2, 32, 32, 3), jnp.uint8)).shape
        (2, 4, 4, 16)
    """

    def __init__(self, config: ConvNeXtConfig, *, rngs: nnx.Rngs) -> None:
        stem = Stem(config, rngs=rngs)
        drops = iter(np.linspace(0, config.drop_path, sum(config.depths)).tolist())
        stages: list[Stage] = []
        for inputs, width, depth in zip(
            (0, *config.widths), config.widths, config.depths, strict=False
        ):
            part = tuple(next(drops) for _ in range(depth))
            stages.append(ConvNeXtStage(config, inputs, width, part, rngs=rngs))
        super().__init__(config, stem, stages)
