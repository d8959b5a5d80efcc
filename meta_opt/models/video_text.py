"""A model of clips and texts: both alone, both together, and a decoder.

The parts of UniVL (Luo et al. 2020, arXiv:2002.06353), which VIOLET and All-in-one have
some of: frames through a temporal transformer, texts through their encoder, a cross
encoder that reads both, and heads for what its losses ask.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models.captioner import Captioner, CaptionerConfig
from meta_opt.models.fusion import (
    Fused,
    Fusion,
    FusionConfig,
    Projection,
    TemporalTransformer,
    Tokens,
)
from meta_opt.models.layers import mean_pool
from meta_opt.models.token_pruning import (
    PruningConfig,
    prune_tokens,
    relevant_tokens,
)
from meta_opt.types import PyTree

_LINEAR = ("match", "language", "frame", "visual", "answers", "choice", "scores")
"""Heads that are one linear layer on the cross encoder's features."""


@dataclasses.dataclass(frozen=True)
class VideoTextHeads:
    """Widths of what is predicted; 0 for what is not.

    Attributes:
        embed_dim: of the unit vectors of the dual encoder.
        match: 1: whether clip and text belong together.
        language: K of the tokens behind masks.
        frame: of the features of masked frames.
        visual: K of the visual tokens of masked frames.
        answers: K of a question's answers.
        choice: 1: how well an answer that is offered fits.
        scores: 1: a sentiment.
        captioner: the decoder; without a vocabulary there is none.
    """

    embed_dim: int = 0
    match: int = 0
    language: int = 0
    frame: int = 0
    visual: int = 0
    answers: int = 0
    choice: int = 0
    scores: int = 0
    captioner: CaptionerConfig = dataclasses.field(default_factory=CaptionerConfig)


class Codebook(nnx.Variable):
    """Centres of visual tokens [K, F]; it does not train."""


class VideoText(nnx.Module):
    """Encoders of frames and text, a cross encoder, and heads.

    Args:
        config: sizes and numerics of all but the encoders.
        encoders: ``image``, which sees frames one by one, and ``text``; upper halves
            where lower layers do not train.
        heads: what it predicts.
        text_lower: the layers of the text's encoder that do not train, a module; None
            if all do. Masked texts go through it.
        codebook: float [K, F], centres of visual tokens; None for none.
        pruning: whether clips are read frame by frame or patch by patch, and how many
            of the patches.
        rngs: random streams; ``params`` initialises all but the encoders.
    """

    def __init__(
        self,
        config: FusionConfig,
        encoders: Mapping[str, Any],
        heads: VideoTextHeads,
        *,
        text_lower: Any = None,
        codebook: np.ndarray | None = None,
        pruning: PruningConfig = PruningConfig(),  # noqa: B008
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.pruning = pruning
        self.encoders = nnx.Dict({m: encoders[m] for m in ("image", "text")})
        if text_lower is not None:
            self.text_lower = text_lower
        if codebook is not None:
            self.codebook = Codebook(jnp.asarray(codebook))
        frame_width = encoders["image"].config.width
        init = nnx.initializers.normal(1.0)
        self.masked_frame = nnx.Param(
            init(rngs.params(), (frame_width,), jnp.dtype(config.param_dtype))
        )
        self.temporal = TemporalTransformer(config, frame_width, rngs=rngs)
        widths = {"video": config.width, "text": encoders["text"].config.width}
        self.projections = nnx.Dict(
            {m: Projection(config, width, rngs=rngs) for m, width in widths.items()}
        )
        self.cross_encoder = Fusion(config, rngs=rngs)
        sizes = {name: getattr(heads, name) for name in _LINEAR}
        self.heads = nnx.Dict(
            {k: config.linear(config.width, n, rngs) for k, n in sizes.items() if n}
        )
        if heads.embed_dim:
            self.embeddings = nnx.Dict(
                {m: config.linear(config.width, heads.embed_dim, rngs) for m in widths}
            )
            self.logit_scale = nnx.Param(jnp.float32(math.log(10.0)))
        if heads.captioner.vocab_size:
            self.captioner = Captioner(heads.captioner, config, rngs=rngs)

    # Clips and texts alone

    def frame_features(self, frames: PyTree) -> jax.Array:
        """Features of each frame by itself, from what the encoder reads.

        [B, T, F], or [B, T, P, F] of its patches where the model reads these.
        """
        frames = jax.tree.map(jnp.asarray, frames)
        batch, length = jax.tree.leaves(frames)[0].shape[:2]
        each = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), frames)
        x, _ = self.encoders["image"].tokens(each)
        if self.pruning.tokens == "patches":
            return x.reshape(batch, length, *x.shape[1:])
        return jnp.mean(x, axis=1).reshape(batch, length, -1)

    def video(
        self, features: jax.Array, present: jax.Array, mask: jax.Array | None = None
    ) -> Tokens:
        """Frames in their order, or what is left of their patches, at the common width.

        Where frames are hidden, a frame is one token, so that it can be predicted.

        Args:
            features: see `frame_features`.
            present: bool [B, T], false on frames that a shorter clip does not have.
            mask: bool [B, T], true on frames that are hidden.
        """
        present = jnp.asarray(present)
        if self.pruning.tokens == "patches":
            if mask is None:
                pruned = prune_tokens(features, present, self.pruning)
                x = self.temporal(pruned.tokens(features), pruned.real, pruned.frames())
                return Tokens(self.projections["video"](x), pruned.real)
            features = jnp.mean(features, axis=2)
        if mask is not None:
            hidden = self.masked_frame[...].astype(features.dtype)[None, None]
            features = jnp.where(mask[..., None], hidden, features)
        x = self.temporal(features, present)
        return Tokens(self.projections["video"](x), present)

    def text(self, inputs: PyTree) -> Tokens:
        """Tokens at the common width, from what the text's encoder reads."""
        x, real = self.encoders["text"].tokens(jax.tree.map(jnp.asarray, inputs))
        return Tokens(self.projections["text"](x), real)

    def read(self, tokens: jax.Array) -> Tokens:
        """`text` of token ids int [B, S]: through the layers that do not train too."""
        return self.text(
            self.text_lower(tokens) if hasattr(self, "text_lower") else tokens
        )

    def embed(self, modality: str, tokens: Tokens) -> jax.Array:
        """Float32 unit vectors [B, embed_dim] of ``video`` or ``text`` alone."""
        z = self.embeddings[modality](mean_pool(*tokens)).astype(jnp.float32)
        return z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-12)

    @property
    def scale(self) -> jax.Array:
        """Logit scale (inverse temperature) of a contrastive loss."""
        return jnp.exp(jnp.clip(self.logit_scale[...], max=math.log(100.0)))

    # Both together

    def cross(
        self, video: Tokens, text: Tokens | None = None, *, prune: bool = True
    ) -> Fused:
        """Reads clips and, if there are, texts together; the text's tokens first.

        Args:
            video: see `video`.
            text: see `text`.
            prune: whether only those tokens of a clip are read that are relevant to its
                text, where the model is so configured. Without, all are, in their
                places.
        """
        if text is None:
            return self.cross_encoder({"video": video})
        if prune and self.pruning.relevant_share < 1:
            kept = self.pruning.relevant(video.x.shape[1])
            video = Tokens(*relevant_tokens(*video, *text, kept))
        both = {"video": video, "text": text}
        return self.cross_encoder(both)

    def pair_logits(
        self, video: Tokens, text: Tokens, *, prune: bool = True
    ) -> jax.Array:
        """How well every clip and every text match, float32 [B, C] of B and C.

        For ``prune`` see `cross`.
        """

        def of_clip(clip: Tokens) -> jax.Array:
            same = (len(text.x), *clip.real.shape)
            clips = Tokens(
                jnp.broadcast_to(clip.x[None], (*same, clip.x.shape[-1])),
                jnp.broadcast_to(clip.real[None], same),
            )
            return self.match(self.cross(clips, text, prune=prune))

        return jax.lax.map(of_clip, video)

    def match(self, fused: Fused) -> jax.Array:
        """Float32 logits [B] of whether clip and text belong together."""
        return self._predict("match", fused.summary)[:, 0]

    def language_logits(self, fused: Fused, length: int) -> jax.Array:
        """Float32 logits of the S tokens of the texts, [B, S, K]."""
        return self._predict("language", fused.tokens.x[:, :length])

    def frames(self, fused: Fused, length: int) -> jax.Array:
        """Predicted features of the T frames as float32 unit vectors, [B, T, F]."""
        z = self._predict("frame", fused.tokens.x[:, -length:])
        return z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-12)

    def visual_logits(self, fused: Fused, length: int) -> jax.Array:
        """Float32 logits of the visual tokens of the T frames, [B, T, K]."""
        return self._predict("visual", fused.tokens.x[:, -length:])

    def visual_tokens(self, targets: jax.Array) -> jax.Array:
        """The nearest centres of frames' targets [B, T, F], int [B, T]."""
        centres = self.codebook[...]
        products = jnp.einsum("btf,kf->btk", jnp.asarray(targets), centres)
        norms = jnp.sum(centres**2, axis=1)[None, None]
        return jnp.argmin(norms - 2 * products, axis=-1)

    def answer_logits(self, fused: Fused) -> jax.Array:
        """Float32 logits of the answers to questions, [B, K]."""
        return self._predict("answers", fused.summary)

    def choice_logits(self, video: Tokens, choices: PyTree) -> jax.Array:
        """How well each of C answers that are offered fits its clip, float32 [B, C].

        Args:
            video: of B clips.
            choices: what the text's encoder reads, [B, C, ...].
        """
        batch, count = jax.tree.leaves(choices)[0].shape[:2]
        text = self.text(
            jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), choices)
        )
        each = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), video)
        logits = self._predict("choice", self.cross(each, text).summary)
        return logits.reshape(batch, count)

    def score(self, fused: Fused) -> jax.Array:
        """Float32 numbers [B]."""
        return self._predict("scores", fused.summary)[:, 0]

    def caption_states(self, fused: Fused, text: jax.Array) -> tuple[jax.Array, ...]:
        """Arguments of `captioning_loss` for captions int [B, S]."""
        return self.captioner.states(fused.tokens, jnp.asarray(text))

    def write(self, fused: Fused, max_tokens: int) -> jax.Array:
        """Greedily decoded captions, int32 [B, max_tokens]; call under `jax.jit`."""
        return self.captioner.write(fused.tokens, max_tokens)

    def _predict(self, head: str, x: jax.Array) -> jax.Array:
        if head not in self.heads:
            raise ValueError(
                f"the model has no head for {head}; it has "
                f"{', '.join(self.heads) or 'none'} (VideoTextHeads)"
            )
        return self.heads[head](x).astype(jnp.float32)
