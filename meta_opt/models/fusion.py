"""Fusion of modalities by a transformer over their concatenated features.

Each modality's features are projected to a common width and marked by a modality
embedding; a transformer attends to all of them and a summary token. Missing modalities
of a sample are masked (the framework of Muhajab et al.).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from meta_opt.models import layers
from meta_opt.models.layers import Numerics
from meta_opt.models.settings import check_divides


@dataclasses.dataclass(frozen=True)
class FusionConfig(Numerics):
    """Architecture and numerics of `Fusion` and of the projections before it.

    Attributes:
        width: D, common width of all modalities.
        depth: L, number of layers across modalities.
        heads: H, number of attention heads; divides ``width``.
        mlp_width: hidden width of the MLP.
        video_depth: number of layers across the frames of a clip.
        frames: T, largest number of frames of a clip.
    """

    width: int = 256
    depth: int = 2
    heads: int = 4
    mlp_width: int = 1024
    video_depth: int = 1
    frames: int = 8

    def __post_init__(self) -> None:
        """Raises ValueError for inconsistent sizes and unknown names."""
        super().__post_init__()
        check_divides(self, "heads", "width")
        for name in ("depth", "video_depth", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def block(self) -> layers.BlockConfig:
        """The configuration of the transformers' layers."""
        return layers.BlockConfig(
            width=self.width,
            heads=self.heads,
            mlp_width=self.mlp_width,
            numerics=self,
        )

    def table(self, rows: int, rngs: nnx.Rngs) -> nnx.Param:
        """A table of small random vectors [rows, D]."""
        init = nnx.initializers.normal(self.width**-0.5)
        dtype = jnp.dtype(self.param_dtype)
        return nnx.Param(init(rngs.params(), (rows, self.width), dtype))

    def stack(self, depth: int, rngs: nnx.Rngs) -> layers.Block:
        """A stack of transformer layers."""
        return layers.stack(
            lambda rngs: layers.Block(self.block, rngs=rngs), depth, rngs
        )

    def apply(
        self, stacked: layers.Block, x: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """Applies layers to ``x`` [B, S, D]."""
        return layers.apply_stack(
            stacked,
            x.astype(self.dtype),
            mask,
            remat=self.remat,
            unroll=not self.scan_layers,
        )


class Tokens(NamedTuple):
    """Features x [B, S, D], and a mask real, bool [B, S], false at padding."""

    x: jax.Array
    real: jax.Array


class Projection(nnx.Module):
    """Projects a modality's features to the common width and adds its embedding.

    Args:
        config: architecture and numerics.
        inputs: width of the features.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(self, config: FusionConfig, inputs: int, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(
            inputs,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            rngs=rngs,
        )
        self.linear = config.linear(inputs, config.width, rngs)
        self.modality_embedding = config.table(1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, inputs] to [B, S, D]."""
        y = self.linear(self.norm(x))
        return y + self.modality_embedding[...][None].astype(y.dtype)


class TemporalTransformer(nnx.Module):
    """Self-attention across the frames of a clip, with temporal positions.

    Args:
        config: architecture and numerics.
        inputs: width of a frame's features.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(self, config: FusionConfig, inputs: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.project = config.linear(inputs, config.width, rngs)
        self.positions = config.table(config.frames, rngs)
        self.layers = config.stack(config.video_depth, rngs)
        self.norm = config.block.norm(rngs)

    def __call__(
        self,
        x: jax.Array,
        real: jax.Array | None = None,
        frame_shares: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [B, S, inputs] to [B, S, D].

        Args:
            x: features of the frames, one row each, or merged tokens with
                ``frame_shares``.
            real: bool [B, S], false after the end of a shorter clip.
            frame_shares: float [B, S, T], share of each frame in each row, whose
                position embedding is the weighted mean. None: row t is frame t.

        Raises:
            ValueError: more frames than position embeddings.
        """
        frames = x.shape[1] if frame_shares is None else frame_shares.shape[2]
        if frames > self.config.frames:
            raise ValueError(
                f"a clip of {frames} frames; the model takes {self.config.frames} at "
                "most"
            )
        positions = self.positions[:frames]
        if frame_shares is None:
            positions = positions[None]
        else:
            positions = frame_shares.astype(positions.dtype) @ positions
        x = self.project(x) + positions
        return self.norm(self.config.apply(self.layers, x, real))


class Fused(NamedTuple):
    """The output of `Fusion`.

    Attributes:
        summary: features of the summary token, float [B, D].
        tokens: concatenated tokens of all modalities, [B, S, D], and mask bool [B, S].
    """

    summary: jax.Array
    tokens: Tokens


class Fusion(nnx.Module):
    """A transformer over the features of all modalities and one summary token.

    Args:
        config: architecture and numerics.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(self, config: FusionConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.summary = config.table(1, rngs)
        self.layers = config.stack(config.depth, rngs)
        self.norm = config.block.norm(rngs)

    def __call__(
        self,
        modalities: Mapping[str, Tokens],
        present: Mapping[str, jax.Array] | None = None,
    ) -> Fused:
        """Fuses the features of several modalities.

        Args:
            modalities: features by name, each [B, S, D].
            present: bool [B] by name, false for samples without the modality;
                modalities that are not listed are present.

        Raises:
            ValueError: no modality, or a name in ``present`` without features.
        """
        present = present or {}
        if not modalities or not present.keys() <= modalities.keys():
            raise ValueError(
                f"modalities {sorted(modalities)} with presence of {sorted(present)}"
            )
        # Sorted, so that the result does not depend on the order of the mapping.
        parts = [
            Tokens(
                x,
                real & present[name][:, None] if name in present else real,
            )
            for name, (x, real) in sorted(modalities.items())
        ]
        batch = len(parts[0].x)
        first = jnp.broadcast_to(
            self.summary[...][None], (batch, 1, self.config.width)
        ).astype(parts[0].x.dtype)
        x = jnp.concatenate([first, *(part.x for part in parts)], axis=1)
        real = jnp.concatenate(
            [jnp.ones((batch, 1), bool), *(part.real for part in parts)], axis=1
        )
        x = self.norm(self.config.apply(self.layers, x, real))
        return Fused(x[:, 0], Tokens(x[:, 1:], real[:, 1:]))
