"""A vision-text transformer: two towers into one space (CLIP, SigLIP).

Radford et al. 2021 (arXiv:2103.00020); Zhai et al. 2023 (arXiv:2303.15343). Layers are
scan-stacked: one compiled block whatever the depth, and each kernel a single
[L, in, out] leaf.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models import layers
from meta_opt.types import Batch, near_match

STACKED = r"(^|/)layers/"
"""Matches the '/'-joined paths of the leaves that have a leading layer axis."""

PAD = 0
"""The token id that pads captions, if a model has no other."""

MAX_SCALE = 100.0
"""Upper bound of the logit scale, as in CLIP."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channels of the images that CLIP was trained on."""


_POOLING = ("mean", "attention", "first", "last", "end")
_PROJECTIONS = ("linear", "linear_bias", "none")


def _check_divides(config: object, small: str, large: str) -> None:
    if getattr(config, large) % getattr(config, small):
        raise ValueError(
            f"{small}={getattr(config, small)} must divide "
            f"{large}={getattr(config, large)}"
        )


def _check_names(config: object, **known_by_field: tuple[str, ...]) -> None:
    for name, known in known_by_field.items():
        if (value := getattr(config, name)) not in known:
            raise ValueError(
                f"{name}={value!r} is not one of {', '.join(known)}"
                f"{near_match(str(value), known)}"
            )


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """A transformer encoder with a vector at its end.

    Attributes:
        width: D.
        depth: L, layers.
        heads: H; divides ``width``.
        mlp_width: hidden width of the MLP.
        activation: ``gelu_tanh``, ``gelu`` or ``quick_gelu``.
        norm_epsilon: of the layer norms.
        input_norm: a layer norm before the first block (CLIP's vision tower).
        causal: a place reads itself and those before it only (CLIP's text tower).
        pooling: which vector: the ``mean``, ``attention`` from a learned query, that of
            the ``first`` or ``last`` place, or of the ``end`` token.
        projection: to the shared space: ``linear``, ``linear_bias`` or ``none``.
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
        """Raises ValueError for sizes that do not fit together and unknown names."""
        _check_divides(self, "heads", "width")
        _check_names(
            self,
            activation=tuple(layers.ACTIVATIONS),
            pooling=_POOLING,
            projection=_PROJECTIONS,
        )


@dataclasses.dataclass(frozen=True)
class VisionTextConfig:
    """Architecture and numerics of `VisionText`; the defaults are ``nano``.

    Attributes:
        image_size: pixels a side.
        patch_size: pixels a side of a patch; divides ``image_size``.
        vision: the vision tower.
        text: the text tower.
        class_token: whether a learned token comes before the patches.
        patch_bias: whether patches are embedded with a bias.
        image_mean: subtracted from the channels of an image in [0, 1].
        image_std: what they are then divided by.
        vocab_size: token ids.
        text_length: longest caption, in tokens.
        pad_id: token of the padding.
        reads_padding: whether text attends to padding too, as SigLIP does.
        end_id: token that ends a caption, for pooling at ``end``.
        embed_dim: width of the shared space.
        init_scale: logit scale (inverse temperature) at the start.
        init_bias: SigLIP's logit bias at the start.
        dtype: of the computation in the towers.
        param_dtype: of the parameters, but for the logit scale and bias.
        remat: what the backward pass recomputes of each layer: ``full``, all but the
            products with kernels (``dots``), or ``none``. Less memory, and on CPU less
            time, since a scan copies what it keeps.
        scan_layers: loop over layers, or (false) write the loop out. The parameters are
            stacked either way.
    """

    image_size: int = 64
    patch_size: int = 8
    vision: TowerConfig = TowerConfig()
    text: TowerConfig = TowerConfig(depth=3)
    class_token: bool = False
    patch_bias: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    vocab_size: int = 2048
    text_length: int = 16
    pad_id: int = PAD
    reads_padding: bool = False
    end_id: int = -1
    embed_dim: int = 128
    init_scale: float = 10.0
    init_bias: float = -10.0
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "full"
    scan_layers: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that do not fit together and unknown names."""
        _check_divides(self, "patch_size", "image_size")
        types = ("float32", "bfloat16")
        _check_names(self, dtype=types, param_dtype=types, remat=tuple(layers.REMAT))
        for name in ("vision", "text"):
            tower = getattr(self, name)
            if tower.projection == "none" and tower.width != self.embed_dim:
                raise ValueError(
                    f"the {name} tower has no projection and width {tower.width}, "
                    f"which must be embed_dim={self.embed_dim}"
                )
        if self.vision.pooling == "first" and not self.class_token:
            raise ValueError("pooling the first place of an image needs class_token")
        if self.vision.pooling == "end":
            raise ValueError("an image has no end token to pool at")
        if self.text.pooling == "end" and self.end_id < 0:
            raise ValueError("pooling at the end token needs its end_id")

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size


def _siglip(width: int, depth: int, heads: int, mlp_width: int) -> dict[str, Any]:
    """SigLIP's two towers of one size (Zhai et al. 2023, arXiv:2303.15343)."""
    tower = TowerConfig(width=width, depth=depth, heads=heads, mlp_width=mlp_width)
    vision = dataclasses.replace(tower, pooling="attention", projection="none")
    text = dataclasses.replace(tower, pooling="last", projection="linear_bias")
    return {
        "vision": vision,
        "text": text,
        "vocab_size": 32_000,
        "text_length": 64,
        "pad_id": 1,
        "reads_padding": True,
        "embed_dim": width,
    }


def _clip_tower(width: int, depth: int, **changes: Any) -> TowerConfig:
    return TowerConfig(
        width=width,
        depth=depth,
        heads=width // 64,
        mlp_width=4 * width,
        activation="quick_gelu",
        norm_epsilon=1e-5,
        **changes,
    )


SIZES = {
    "nano": VisionTextConfig(),
    "tiny": VisionTextConfig(
        vision=TowerConfig(width=192, depth=12, heads=3, mlp_width=768),
        text=TowerConfig(width=192, depth=6, heads=3, mlp_width=768),
        embed_dim=192,
    ),
    # SigLIP, base.
    "B/16": VisionTextConfig(
        image_size=224, patch_size=16, **_siglip(768, 12, 12, 3072)
    ),
    # CLIP, large (Radford et al. 2021, table 20).
    "L/14": VisionTextConfig(
        image_size=224,
        patch_size=14,
        vision=_clip_tower(1024, 24, pooling="first", input_norm=True),
        text=_clip_tower(768, 12, pooling="end", causal=True),
        class_token=True,
        patch_bias=False,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
        vocab_size=49_408,
        text_length=77,
        pad_id=49_407,
        reads_padding=True,
        end_id=49_407,
        embed_dim=768,
        init_scale=1 / 0.07,
    ),
    # SigLIP, shape-optimised (Alabdulmohsin et al. 2023, arXiv:2305.13035).
    "So400m/14": VisionTextConfig(
        image_size=224, patch_size=14, **_siglip(1152, 27, 16, 4304)
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


def resize_positions(
    table: np.ndarray | jax.Array, old_grid: int, new_grid: int
) -> jax.Array:
    """Position embeddings of images for images of another size.

    Bilinear with antialiasing, as in big_vision; a class token's row stays.

    Args:
        table: [P, D] or [1 + P, D], P = ``old_grid`` squared.
        old_grid: patches a side.
        new_grid: patches a side of the result.

    Raises:
        ValueError: a table of another length.
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
    """What both towers share: positions, blocks, norm, pooling, projection."""

    def __init__(
        self,
        config: VisionTextConfig,
        tower: TowerConfig,
        length: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.tower = config, tower
        block = layers.BlockConfig(
            width=tower.width,
            heads=tower.heads,
            mlp_width=tower.mlp_width,
            activation=tower.activation,
            norm_epsilon=tower.norm_epsilon,
            causal=tower.causal,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
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
            self.projection = block.linear(
                tower.width, config.embed_dim, rngs, tower.projection == "linear_bias"
            )

    def embedding(self, rows: int, rngs: nnx.Rngs) -> nnx.Param:
        """A table [rows, D] of small random numbers."""
        init = nnx.initializers.normal(self.tower.width**-0.5)
        dtype = jnp.dtype(self.config.param_dtype)
        return nnx.Param(init(rngs.params(), (rows, self.tower.width), dtype))

    def transform(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Adds positions to ``x`` [B, S, D] and applies blocks and norm: [B, S, D]."""
        x = x + self.positions[: x.shape[1]][None]
        if self.tower.input_norm:
            x = self.input_norm(x)
        x = layers.apply_stack(
            self.layers,
            x.astype(self.config.dtype),
            mask,
            remat=self.config.remat,
            unroll=not self.config.scan_layers,
        )
        return self.norm(x)

    def pooled(
        self, x: jax.Array, mask: jax.Array | None, end: jax.Array | None
    ) -> jax.Array:
        """One vector [B, D] of ``x`` [B, S, D]; ``end`` int [B] is where it ends."""
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

    def embed(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        end: jax.Array | None = None,
    ) -> jax.Array:
        """Pools and projects ``x`` [B, S, D] to float32 unit rows [B, embed_dim]."""
        z = self.pooled(x, mask, end)
        if self.tower.projection != "none":
            z = self.projection(z)
        z = z.astype(jnp.float32)
        # An all-padding caption has z = 0, where a plain norm has no gradient.
        return z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-12)


class VisionTower(Tower):
    """ViT (Dosovitskiy et al. 2021, arXiv:2010.11929), a class token or none."""

    def __init__(self, config: VisionTextConfig, *, rngs: nnx.Rngs) -> None:
        length = config.grid**2 + config.class_token
        super().__init__(config, config.vision, length, rngs)
        self.patches = layers.Linear(
            3 * config.patch_size**2,
            config.vision.width,
            use_bias=config.patch_bias,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            rngs=rngs,
        )
        if config.class_token:
            self.class_token = self.embedding(1, rngs)

    def features(self, image: jax.Array) -> jax.Array:
        """[B, h, w, 3], uint8 or float in [0, 1], to patch features [B, P, D].

        With a class token its features come first.
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
        """[B, h, w, 3] to unit vectors [B, embed_dim]."""
        return self.embed(self.features(image))


class TextTower(Tower):
    """A transformer over tokens."""

    def __init__(self, config: VisionTextConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, config.text, config.text_length, rngs)
        self.tokens = nnx.Embed(
            config.vocab_size,
            config.text.width,
            embedding_init=nnx.initializers.normal(config.text.width**-0.5),
            param_dtype=jnp.dtype(config.param_dtype),
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
        return self.transform(self.tokens(tokens), self._mask(tokens))

    def _mask(self, tokens: jax.Array) -> jax.Array | None:
        return None if self.config.reads_padding else tokens != self.config.pad_id

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Token ids, int [B, S], to unit vectors [B, embed_dim].

        Pooled at the end token, the first one counts; without one, the last place.
        """
        found = tokens == self.config.end_id
        end = jnp.where(
            jnp.any(found, axis=1), jnp.argmax(found, axis=1), tokens.shape[1] - 1
        )
        return self.embed(self.features(tokens), self._mask(tokens), end)


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
