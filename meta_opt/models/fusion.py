"""Fusion of modalities: their features concatenated, and attention across all.

Each modality's features are brought to one width and marked by an embedding of its own;
a transformer reads all of them together with a token that sums them up. Where a sample
lacks a modality, nothing of it is read (the framework of Muhajab et al.).
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
    """Shape and numerics of `Fusion` and of what leads to it.

    Attributes:
        width: D, which all modalities are brought to.
        depth: L, layers that read across modalities.
        heads: H; divides ``width``.
        mlp_width: hidden width of the MLP.
        video_depth: layers that read across the frames of a clip.
        frames: T, of a clip at most.
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
        """Of the transformers' layers."""
        return layers.BlockConfig(
            width=self.width,
            heads=self.heads,
            mlp_width=self.mlp_width,
            numerics=self,
        )

    def table(self, rows: int, rngs: nnx.Rngs) -> nnx.Param:
        """Small random vectors [rows, D]."""
        init = nnx.initializers.normal(self.width**-0.5)
        dtype = jnp.dtype(self.param_dtype)
        return nnx.Param(init(rngs.params(), (rows, self.width), dtype))

    def stack(self, depth: int, rngs: nnx.Rngs) -> layers.Block:
        """Layers of a transformer."""
        return layers.stack(
            lambda rngs: layers.Block(self.block, rngs=rngs), depth, rngs
        )

    def apply(
        self, stacked: layers.Block, x: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """Takes ``x`` [B, S, D] through them."""
        return layers.apply_stack(
            stacked,
            x.astype(self.dtype),
            mask,
            remat=self.remat,
            unroll=not self.scan_layers,
        )


class Tokens(NamedTuple):
    """Features x [B, S, D], and real, bool [B, S], false where there is nothing."""

    x: jax.Array
    real: jax.Array


class Projection(nnx.Module):
    """A modality's features at the common width, marked as that modality's.

    Args:
        config: sizes and numerics.
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
        """[B, S, inputs] to [B, S, D]."""
        y = self.linear(self.norm(x))
        return y + self.modality_embedding[...][None].astype(y.dtype)


class TemporalTransformer(nnx.Module):
    """Self-attention across the frames of a clip, with temporal positions.

    Args:
        config: sizes and numerics.
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
        """[B, S, inputs] to [B, S, D].

        Args:
            x: features of the frames, one each; of parts of them with ``frame_shares``.
            real: bool [B, S], false on frames that a shorter clip does not have.
            frame_shares: float [B, S, T], how much of each row is of each frame: its
                position is the mean of theirs. None: row t is frame t.

        Raises:
            ValueError: more frames than there are positions.
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
    """What `Fusion` makes of a batch.

    Attributes:
        summary: float [B, D].
        tokens: of all modalities, one after the other, [B, S, D] and bool [B, S].
    """

    summary: jax.Array
    tokens: Tokens


class Fusion(nnx.Module):
    """A transformer over the features of all modalities and one summary token.

    Args:
        config: sizes and numerics.
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
        """Fuses.

        Args:
            modalities: features by name, each [B, S, D].
            present: by name bool [B], false for samples that lack the modality; those
                that are not named are there.

        Raises:
            ValueError: no modality, or one that is named and not there.
        """
        present = present or {}
        if not modalities or not present.keys() <= modalities.keys():
            raise ValueError(
                f"modalities {sorted(modalities)} with presence of {sorted(present)}"
            )
        # In one order, whatever the mapping's.
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
