"""A vision-text transformer: two towers into one space (CLIP, SigLIP).

Radford et al. 2021 (arXiv:2103.00020); Zhai et al. 2023 (arXiv:2303.15343). Layers are
scan-stacked: one compiled block whatever the depth, and each kernel a single
[L, in, out] leaf.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models import layers
from meta_opt.types import Batch, near_match

STACKED = r"(^|/)layers/"
"""Matches the '/'-joined paths of the leaves that have a leading layer axis."""

PAD = 0
"""The token id that pads captions."""

MAX_SCALE = 100.0
"""Upper bound of the logit scale, as in CLIP."""


@dataclasses.dataclass(frozen=True)
class VisionTextConfig:
    """Architecture and numerics of `VisionText`; the defaults are ``nano``.

    Attributes:
        image_size: pixels a side.
        patch_size: pixels a side of a patch; divides ``image_size``.
        width: D of both towers.
        vision_depth: layers of the vision tower.
        text_depth: layers of the text tower.
        heads: attention heads of both towers; divides ``width``.
        mlp_ratio: hidden width of the MLP over ``width``.
        vocab_size: token ids, with 0 the padding.
        text_length: longest caption, in tokens.
        embed_dim: width of the shared space.
        pooling: ``mean`` or ``attention``, over patches and over tokens.
        init_scale: logit scale (inverse temperature) at the start.
        init_bias: SigLIP's logit bias at the start.
        dtype: of the computation in the towers; parameters are float32.
        remat: recompute each layer's activations in the backward pass: less memory, and
            on CPU less time, since a scan copies what it keeps.
        scan_layers: loop over layers, or (false) write the loop out. The parameters are
            stacked either way.
    """

    image_size: int = 64
    patch_size: int = 8
    width: int = 128
    vision_depth: int = 4
    text_depth: int = 3
    heads: int = 4
    mlp_ratio: int = 4
    vocab_size: int = 2048
    text_length: int = 16
    embed_dim: int = 128
    pooling: str = "mean"
    init_scale: float = 10.0
    init_bias: float = -10.0
    dtype: str = "float32"
    remat: bool = True
    scan_layers: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that do not fit together and unknown names."""
        for small, large in (("patch_size", "image_size"), ("heads", "width")):
            if getattr(self, large) % getattr(self, small):
                raise ValueError(
                    f"{small}={getattr(self, small)} must divide "
                    f"{large}={getattr(self, large)}"
                )
        for name, known in (
            ("pooling", ("mean", "attention")),
            ("dtype", ("float32", "bfloat16")),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(
                    f"{name}={value!r} is not one of {', '.join(known)}"
                    f"{near_match(str(value), known)}"
                )


SIZES = {
    "nano": VisionTextConfig(),
    "tiny": VisionTextConfig(
        width=192, vision_depth=12, text_depth=6, heads=3, embed_dim=192
    ),
}
"""Configurations by name."""


def named_config(name: str, **changes: object) -> VisionTextConfig:
    """Returns ``SIZES[name]`` with ``changes``.

    Raises:
        ValueError: if there is no size of that name.
    """
    if name not in SIZES:
        raise ValueError(
            f"no model size {name!r}{near_match(name, SIZES)} (sizes: "
            f"{', '.join(SIZES)})"
        )
    return dataclasses.replace(SIZES[name], **changes)  # type: ignore[arg-type]


class Tower(nnx.Module):
    """What both towers share: positions, blocks, norm, pooling, projection."""

    def __init__(
        self, config: VisionTextConfig, depth: int, length: int, rngs: nnx.Rngs
    ) -> None:
        self.config = config
        width, dtype = config.width, jnp.dtype(config.dtype)
        init = nnx.initializers.normal(width**-0.5)
        self.positions = nnx.Param(init(rngs.params(), (length, width)))
        block = functools.partial(
            layers.Block, width, config.heads, config.mlp_ratio, dtype=dtype
        )
        self.layers = layers.stack(lambda rngs: block(rngs=rngs), depth, rngs)
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        if config.pooling == "attention":
            self.pool = layers.AttentionPool(
                width, config.heads, dtype=dtype, rngs=rngs
            )
        self.projection = layers.Linear(
            width, config.embed_dim, use_bias=False, dtype=dtype, rngs=rngs
        )

    def transform(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Adds positions to ``x`` [B, S, D] and applies blocks and norm: [B, S, D]."""
        x = x + self.positions[: x.shape[1]][None]
        x = layers.apply_stack(
            self.layers,
            x.astype(self.config.dtype),
            mask,
            remat=self.config.remat,
            unroll=not self.config.scan_layers,
        )
        return self.norm(x)

    def embed(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Pools and projects ``x`` [B, S, D] to float32 unit rows [B, embed_dim]."""
        pool = self.pool if self.config.pooling == "attention" else layers.mean_pool
        z = self.projection(pool(x, mask)).astype(jnp.float32)
        # An all-padding caption has z = 0, where a plain norm has no gradient.
        return z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-12)


class VisionTower(Tower):
    """ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) without a class token."""

    def __init__(self, config: VisionTextConfig, *, rngs: nnx.Rngs) -> None:
        patches = (config.image_size // config.patch_size) ** 2
        super().__init__(config, config.vision_depth, patches, rngs)
        self.patches = layers.Linear(
            3 * config.patch_size**2,
            config.width,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )

    def features(self, image: jax.Array) -> jax.Array:
        """[B, h, w, 3], uint8 or float in [0, 1], to patch features [B, P, D]."""
        size, patch = self.config.image_size, self.config.patch_size
        if image.ndim != 4 or image.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images have shape {image.shape}; the model takes "
                f"[B, {size}, {size}, 3]"
            )
        if image.dtype == jnp.uint8:
            image = image.astype(jnp.float32) / 255
        grid = size // patch
        x = (2 * image - 1).reshape(-1, grid, patch, grid, patch, 3)
        x = x.swapaxes(2, 3).reshape(-1, grid * grid, patch * patch * 3)
        return self.transform(self.patches(x))

    def __call__(self, image: jax.Array) -> jax.Array:
        """[B, h, w, 3] to unit vectors [B, embed_dim]."""
        return self.embed(self.features(image))


class TextTower(Tower):
    """A bidirectional transformer over the tokens that are not padding."""

    def __init__(self, config: VisionTextConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, config.text_depth, config.text_length, rngs)
        self.tokens = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_init=nnx.initializers.normal(config.width**-0.5),
            rngs=rngs,
        )

    def features(self, tokens: jax.Array) -> jax.Array:
        """Token ids, int [B, S], to token features [B, S, D]."""
        longest = self.config.text_length
        if tokens.ndim != 2 or tokens.shape[1] > longest:
            raise ValueError(
                f"tokens have shape {tokens.shape}; the model takes [B, S] with S up "
                f"to {longest}"
            )
        return self.transform(self.tokens(tokens), tokens != PAD)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Token ids, int [B, S], to unit vectors [B, embed_dim]."""
        return self.embed(self.features(tokens), tokens != PAD)


class VisionText(nnx.Module):
    """Image and text encoders with unit-length outputs, a logit scale and a bias.

    For pure functions, ``graphdef, params = nnx.split(model, nnx.Param)`` and
    ``nnx.merge(graphdef, params)``.

    Args:
        config: sizes and numerics.
        rngs: the ``params`` stream initialises.
    """

    def __init__(self, config: VisionTextConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.vision = VisionTower(config, rngs=rngs)
        self.text = TextTower(config, rngs=rngs)
        self.log_scale = nnx.Param(jnp.float32(math.log(config.init_scale)))
        self.logit_bias = nnx.Param(jnp.float32(config.init_bias))

    def encode_image(self, image: jax.Array | np.ndarray) -> jax.Array:
        """Embeds images.

        Args:
            image: [B, h, w, 3], uint8 or float in [0, 1].

        Returns:
            float32 [B, embed_dim] of length 1.

        Raises:
            ValueError: if the shape is not the model's.
        """
        return self.vision(jnp.asarray(image))

    def encode_text(self, tokens: jax.Array | np.ndarray) -> jax.Array:
        """Embeds captions.

        Args:
            tokens: int [B, S], 0 where there is none; S up to ``text_length``.

        Returns:
            float32 [B, embed_dim] of length 1 (zero for a caption without tokens).

        Raises:
            ValueError: if the captions are too long.
        """
        return self.text(jnp.asarray(tokens))

    def scale(self) -> jax.Array:
        """Logit scale, ``min(exp(log_scale), 100)``: a float32 scalar."""
        return jnp.exp(jnp.minimum(self.log_scale[...], math.log(MAX_SCALE)))

    def __call__(
        self, batch: Batch
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns what the contrastive losses take, so that ``loss(*model(batch))``.

        Args:
            batch: ``image`` [B, h, w, 3] and ``text`` int [B, S].

        Returns:
            Image embeddings [B, embed_dim], text embeddings [B, embed_dim], logit scale
            [] and logit bias [].
        """
        return (
            self.encode_image(batch["image"]),
            self.encode_text(batch["text"]),
            self.scale(),
            self.logit_bias[...],
        )


def parameter_count(model: nnx.Module) -> int:
    """Number of parameters (scalars) in ``model``."""
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return sum(math.prod(leaf.shape) for leaf in leaves)
