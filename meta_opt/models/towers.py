"""Transformer encoders: the base class of both towers, and the vision tower.

Layers are scan-stacked: a block is compiled once for any depth, and each kernel is a
single [L, in, out] leaf.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models import layers
from meta_opt.models.layers import Numerics
from meta_opt.models.settings import (
    MAX_DEPTH,
    check_counts,
    check_divides,
    check_names,
    check_positive,
)

STACKED = r"(^|/)layers/"
"""Matches the '/'-joined paths of the leaves that have a leading layer axis."""

_POOLING = ("mean", "attention", "first", "last", "end", "none")
_PROJECTIONS = ("linear", "linear_bias", "none")


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Shape and numerics of a transformer encoder, with pooling and projection.

    Attributes:
        width: D, width of the representation.
        depth: L, number of layers.
        heads: H, number of attention heads; divides ``width``.
        mlp_width: hidden width of the MLP.
        activation: ``gelu_tanh``, ``gelu`` or ``quick_gelu``.
        norm_epsilon: epsilon of the layer norms.
        input_norm: whether to apply a layer norm before the first block (CLIP's vision
            tower).
        causal: whether attention is causal (CLIP's text tower).
        pooling: ``mean``, ``attention`` with a learned query, the ``first`` or ``last``
            position, or the ``end`` token; ``none`` if only the features of all
            positions are used.
        projection: output projection: ``linear``, ``linear_bias`` or ``none``.
    """

    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_width: int = 512
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-6
    input_norm: bool = False
    causal: bool = False
    pooling: str = "mean"
    projection: str = "linear"

    def __post_init__(self) -> None:
        """Raises ValueError for inconsistent sizes and unknown names."""
        check_counts(self, "width", "heads", "mlp_width")
        check_counts(self, "depth", most=MAX_DEPTH)
        check_positive(self, "norm_epsilon")
        check_divides(self, "heads", "width")
        check_names(
            self,
            activation=tuple(layers.ACTIVATIONS),
            pooling=_POOLING,
            projection=_PROJECTIONS,
        )


@dataclasses.dataclass(frozen=True)
class VisionConfig(Numerics):
    """Base configuration of models with a `VisionTower`, with numerics of all parts.

    Attributes:
        image_size: side of the images in pixels.
        patch_size: side of a patch in pixels; divides ``image_size``.
        vision: the vision tower.
        class_token: whether to prepend a learned class token to the patches.
        patch_bias: whether the patch embedding has a bias.
        image_mean: mean of the channels, for pixels in [0, 1].
        image_std: standard deviation of the channels.
    """

    image_size: int = 64
    patch_size: int = 8
    vision: TowerConfig = TowerConfig()
    class_token: bool = False
    patch_bias: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        """Raises ValueError for inconsistent sizes and unknown names."""
        super().__post_init__()
        check_counts(self, "image_size", "patch_size")
        check_divides(self, "patch_size", "image_size")
        if self.vision.pooling == "first" and not self.class_token:
            raise ValueError("pooling the first place of an image needs class_token")
        if self.vision.pooling == "end":
            raise ValueError("an image has no end token to pool at")

    @property
    def grid(self) -> int:
        """Number of patches per side.

        >>> VisionConfig(image_size=224, patch_size=14).grid
        16
        """
        return self.image_size // self.patch_size


def resize_positions(
    table: np.ndarray | jax.Array, old_grid: int, new_grid: int
) -> jax.Array:
    """Resizes position embeddings to another image size.

    Bilinear with antialiasing, as in big_vision; a class token's row is unchanged.

    Args:
        table: [P, D] or [1 + P, D], P = ``old_grid`` squared.
        old_grid: number of patches per side.
        new_grid: number of patches per side of the result.

    Raises:
        ValueError: the length of the table does not match ``old_grid``.
    """
    first = len(table) - old_grid**2
    if first not in (0, 1):
        raise ValueError(
            f"{len(table)} positions are neither {old_grid}x{old_grid} patches nor one "
            "more"
        )
    square = jnp.asarray(table[first:]).reshape(old_grid, old_grid, -1)
    shape = (new_grid, new_grid, square.shape[-1])
    resized = jax.image.resize(square, shape, "bilinear", antialias=True)
    return jnp.concatenate(
        [jnp.asarray(table[:first]), resized.reshape(new_grid**2, -1)]
    )


class Tower(nnx.Module):
    """Base class of both towers: positions, blocks, norm, pooling, projection."""

    def __init__(
        self,
        numerics: Numerics,
        tower: TowerConfig,
        length: int,
        outputs: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.numerics, self.tower = numerics, tower
        block = layers.BlockConfig(
            width=tower.width,
            heads=tower.heads,
            mlp_width=tower.mlp_width,
            activation=tower.activation,
            norm_epsilon=tower.norm_epsilon,
            causal=tower.causal,
            numerics=numerics,
        )
        self.positions = self.embedding(length, rngs)
        if tower.input_norm:
            self.input_norm = block.norm(rngs)
        self.layers = layers.stack(
            lambda rngs: layers.Block(block, rngs=rngs), tower.depth, rngs
        )
        self.norm = block.norm(rngs)
        if tower.pooling == "attention":
            self.pool = layers.AttentionPool(block, rngs=rngs)
        if tower.projection != "none":
            self.projection = numerics.linear(
                tower.width, outputs, rngs, tower.projection == "linear_bias"
            )

    def embedding(self, rows: int, rngs: nnx.Rngs) -> nnx.Param:
        """Creates an embedding table [rows, D] of small random numbers."""
        init = nnx.initializers.normal(self.tower.width**-0.5)
        dtype = jnp.dtype(self.numerics.param_dtype)
        return nnx.Param(init(rngs.params(), (rows, self.tower.width), dtype))

    def transform(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Adds positions to ``x`` [B, S, D] and applies blocks and norm: [B, S, D]."""
        x = x + self.positions[: x.shape[1]][None]
        if self.tower.input_norm:
            x = self.input_norm(x)
        x = layers.apply_stack(
            self.layers,
            x.astype(self.numerics.dtype),
            mask,
            remat=self.numerics.remat,
            unroll=not self.numerics.scan_layers,
        )
        return self.norm(x)

    def pooled(
        self, x: jax.Array, mask: jax.Array | None, end: jax.Array | None
    ) -> jax.Array:
        """Pools ``x`` [B, S, D] to [B, D]; ``end`` int [B] is the end token's index."""
        match self.tower.pooling:
            case "attention":
                return self.pool(x, mask)
            case "first":
                return x[:, 0]
            case "last":
                return x[:, -1]
            case "end":
                assert end is not None
                return jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
            case _:
                return layers.mean_pool(x, mask)

    def project(self, z: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., outputs]."""
        return z if self.tower.projection == "none" else self.projection(z)

    def embed(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        end: jax.Array | None = None,
    ) -> jax.Array:
        """Pools and projects ``x`` [B, S, D] to float32 unit rows [B, outputs]."""
        z = self.project(self.pooled(x, mask, end)).astype(jnp.float32)
        # An all-padding caption has z = 0.
        return layers.l2_normalize(z)


class VisionTower(Tower):
    """ViT (Dosovitskiy et al. 2021, arXiv:2010.11929), optional class token."""

    def __init__(self, config: VisionConfig, outputs: int, *, rngs: nnx.Rngs) -> None:
        length = config.grid**2 + config.class_token
        super().__init__(config, config.vision, length, outputs, rngs)
        self.config = config
        self.patches = config.linear(
            3 * config.patch_size**2, config.vision.width, rngs, config.patch_bias
        )
        if config.class_token:
            self.class_token = self.embedding(1, rngs)

    def features(self, image: jax.Array) -> jax.Array:
        """Maps [B, h, w, 3], uint8 or float in [0, 1], to patch features [B, P, D].

        The features of a class token come first.
        """
        config = self.config
        size, patch, grid = config.image_size, config.patch_size, config.grid
        if image.ndim != 4 or image.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images have shape {image.shape}; the model takes "
                f"[B, {size}, {size}, 3]"
            )
        if image.dtype == jnp.uint8:
            image = image.astype(jnp.float32) / 255
        mean, std = (
            jnp.asarray(channels, image.dtype).reshape(1, 1, 1, 3)
            for channels in (config.image_mean, config.image_std)
        )
        x = ((image - mean) / std).reshape(-1, grid, patch, grid, patch, 3)
        x = x.swapaxes(2, 3).reshape(-1, grid * grid, patch * patch * 3)
        x = self.patches(x)
        if config.class_token:
            token = self.class_token[...][None]
            first = jnp.broadcast_to(token, (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
        return self.transform(x)

    def __call__(self, image: jax.Array) -> jax.Array:
        """Maps [B, h, w, 3] to unit vectors [B, outputs]."""
        return self.embed(self.features(image))
