"""Dual-encoder vision-text transformer (CLIP, SigLIP).

Radford et al. 2021 (arXiv:2103.00020); Zhai et al. 2023 (arXiv:2303.15343).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models.layers import logit_scale
from meta_opt.models.parameters import parameter_count
from meta_opt.models.settings import check_counts
from meta_opt.models.towers import (
    STACKED,
    Tower,
    TowerConfig,
    VisionConfig,
    VisionTower,
    resize_positions,
)
from meta_opt.types import Batch, near_match

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "PAD",
    "SIZES",
    "STACKED",
    "TextTower",
    "TowerConfig",
    "VisionText",
    "VisionTextConfig",
    "VisionTower",
    "named_config",
    "parameter_count",
    "resize_positions",
]

PAD = 0
"""Default id of the padding token."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics of CLIP's training images."""


@dataclasses.dataclass(frozen=True)
class VisionTextConfig(VisionConfig):
    """Architecture and numerics of `VisionText`; the defaults are ``nano``.

    The logit scale and bias are always float32, independent of ``param_dtype``.

    Attributes:
        text: the text tower.
        vocab_size: size of the vocabulary.
        text_length: largest number of tokens of a caption.
        pad_id: id of the padding token.
        reads_padding: whether text also attends to padding, as in SigLIP.
        end_id: token that ends a caption, for pooling at ``end``.
        embed_dim: width of the shared embedding space.
        init_scale: initial logit scale (inverse temperature).
        init_bias: initial logit bias of SigLIP.
    """

    text: TowerConfig = dataclasses.field(default_factory=lambda: TowerConfig(depth=3))
    vocab_size: int = 2048
    text_length: int = 16
    pad_id: int = PAD
    reads_padding: bool = False
    end_id: int = -1
    embed_dim: int = 128
    init_scale: float = 10.0
    init_bias: float = -10.0

    def __post_init__(self) -> None:
        """Raises ValueError for inconsistent sizes and unknown names."""
        super().__post_init__()
        check_counts(self, "vocab_size", "text_length", "embed_dim")
        if not 0 < self.init_scale < math.inf:
            raise ValueError(
                f"init_scale={self.init_scale} must be above 0, and finite"
            )
        for name in ("pad_id", "end_id"):
            if not isinstance(value := getattr(self, name), int):
                raise ValueError(f"{name}={value!r} must be an integer")
        for name in ("vision", "text"):
            tower = getattr(self, name)
            if tower.pooling == "none":
                raise ValueError(f"the {name} tower pools to no vector to compare")
            if tower.projection == "none" and tower.width != self.embed_dim:
                raise ValueError(
                    f"the {name} tower has no projection and width {tower.width}, "
                    f"which must be embed_dim={self.embed_dim}"
                )
        if self.text.pooling == "end" and self.end_id < 0:
            raise ValueError("pooling at the end token needs its end_id")


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


class TextTower(Tower):
    """A transformer over tokens."""

    def __init__(self, config: VisionTextConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(
            config, config.text, config.text_length, config.embed_dim, rngs
        )
        self.config = config
        self.tokens = nnx.Embed(
            config.vocab_size,
            config.text.width,
            embedding_init=nnx.initializers.normal(config.text.width**-0.5),
            param_dtype=jnp.dtype(config.param_dtype),
            rngs=rngs,
        )

    def features(self, tokens: jax.Array) -> jax.Array:
        """Maps token ids, int [B, S], to token features [B, S, D]."""
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
        """Maps token ids, int [B, S], to unit vectors [B, embed_dim].

        End pooling uses the first end token or, without one, the last position.
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
        config: architecture and numerics.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(self, config: VisionTextConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.vision = VisionTower(config, config.embed_dim, rngs=rngs)
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
            ValueError: if the shape does not fit the model.
        """
        return self.vision(jnp.asarray(image))

    def encode_text(self, tokens: jax.Array | np.ndarray) -> jax.Array:
        """Embeds captions.

        Args:
            tokens: int [B, S], padded; S up to ``text_length``.

        Returns:
            float32 [B, embed_dim] of length 1 (zero for a caption without tokens).

        Raises:
            ValueError: if the captions are too long.
        """
        return self.text(jnp.asarray(tokens))

    def scale(self) -> jax.Array:
        """Logit scale (inverse temperature): a float32 scalar, at most 100."""
        return logit_scale(self.log_scale[...])

    def __call__(
        self, batch: Batch
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns the arguments of a contrastive loss, for ``loss(*model(batch))``.

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
