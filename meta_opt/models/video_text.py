"""Video-text model: dual encoder, cross encoder and decoder.

The parts of UniVL (Luo et al. 2020, arXiv:2002.06353), some of which VIOLET and
All-in-one share: a temporal transformer over frames, a text encoder, a cross encoder of
both, and a head for each loss.
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
from meta_opt.models.layers import l2_normalize, logit_scale, mean_pool
from meta_opt.models.token_pruning import (
    PruningConfig,
    prune_tokens,
    relevant_tokens,
)
from meta_opt.types import PyTree

_LINEAR = ("match", "language", "frame", "visual", "answers", "choice", "scores")
"""Heads that consist of one linear layer on the cross encoder's features."""


@dataclasses.dataclass(frozen=True)
class VideoTextHeads:
    """Output widths of the heads; 0 for heads that do not exist.

    Attributes:
        embed_dim: width of the dual encoder's embeddings.
        match: 1 for video-text matching.
        language: K, vocabulary size of masked language modelling.
        frame: width of the predicted features of masked frames.
        visual: K, codebook size of masked visual-token modelling.
        answers: K, number of answers of question answering.
        choice: 1 for scoring the options of multiple-choice questions.
        scores: 1 for sentiment regression.
        captioner: decoder of captions; without a vocabulary there is none.
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
    """Centres of visual tokens [K, F], which are not trained."""


class VideoText(nnx.Module):
    """Encoders of frames and text, a cross encoder, and heads.

    Args:
        config: architecture and numerics of all parts but the encoders.
        encoders: ``image``, applied to single frames, and ``text``; upper halves if
            lower layers are frozen.
        heads: widths of the output heads.
        text_lower: module of the text encoder's frozen layers, which is applied to
            masked texts; None if all layers are trained.
        codebook: float [K, F], centres of visual tokens, or None.
        pruning: whether the tokens of clips are frames or patches, and their pruning.
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
        """Features of each single frame, from the encoder's inputs.

        [B, T, F], or [B, T, P, F] if the model's tokens are patches.
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
        """Tokens of clips at the common width: frames, or pruned patches.

        With masked frames, each frame is one token, so that it can be predicted.

        Args:
            features: see `frame_features`.
            present: bool [B, T], false after the end of a shorter clip.
            mask: bool [B, T], true at masked frames.
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
        """Text tokens at the common width, from the text encoder's inputs."""
        x, real = self.encoders["text"].tokens(jax.tree.map(jnp.asarray, inputs))
        return Tokens(self.projections["text"](x), real)

    def read(self, tokens: jax.Array) -> Tokens:
        """`text` of token ids int [B, S], including the frozen layers."""
        return self.text(
            self.text_lower(tokens) if hasattr(self, "text_lower") else tokens
        )

    def embed(self, modality: str, tokens: Tokens) -> jax.Array:
        """Float32 unit embeddings [B, embed_dim] of ``video`` or ``text`` alone."""
        z = self.embeddings[modality](mean_pool(*tokens)).astype(jnp.float32)
        return l2_normalize(z)

    @property
    def scale(self) -> jax.Array:
        """Logit scale (inverse temperature) of a contrastive loss."""
        return logit_scale(self.logit_scale[...])

    # Both together

    def cross(
        self, video: Tokens, text: Tokens | None = None, *, prune: bool = True
    ) -> Fused:
        """Applies the cross encoder to texts, if there are any, followed by clips.

        Args:
            video: see `video`.
            text: see `text`.
            prune: whether to keep only the tokens of a clip that are relevant to its
                text, if so configured; if false, all tokens are kept at their
                positions.
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
        """Matching logits of all B clips with all C texts, float32 [B, C].

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
        """Float32 matching logits [B] of clips and texts."""
        return self._predict("match", fused.summary)[:, 0]

    def language_logits(self, fused: Fused, length: int) -> jax.Array:
        """Float32 logits of the S tokens of the texts, [B, S, K]."""
        return self._predict("language", fused.tokens.x[:, :length])

    def frames(self, fused: Fused, length: int) -> jax.Array:
        """Predicted features of the T frames as float32 unit vectors, [B, T, F]."""
        z = self._predict("frame", fused.tokens.x[:, -length:])
        return l2_normalize(z)

    def visual_logits(self, fused: Fused, length: int) -> jax.Array:
        """Float32 logits of the visual tokens of the T frames, [B, T, K]."""
        return self._predict("visual", fused.tokens.x[:, -length:])

    def visual_tokens(self, targets: jax.Array) -> jax.Array:
        """Indices of the nearest centres of frame features [B, T, F], int [B, T]."""
        centres = self.codebook[...]
        products = jnp.einsum("btf,kf->btk", jnp.asarray(targets), centres)
        norms = jnp.sum(centres**2, axis=1)[None, None]
        return jnp.argmin(norms - 2 * products, axis=-1)

    def answer_logits(self, fused: Fused) -> jax.Array:
        """Float32 logits of the answers to questions, [B, K]."""
        return self._predict("answers", fused.summary)

    def choice_logits(self, video: Tokens, choices: PyTree) -> jax.Array:
        """Float32 logits [B, C] of the C options of multiple-choice questions.

        Args:
            video: tokens of B clips.
            choices: inputs of the text encoder for the options, [B, C, ...].
        """
        batch, count = jax.tree.leaves(choices)[0].shape[:2]
        text = self.text(
            jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), choices)
        )
        each = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), video)
        logits = self._predict("choice", self.cross(each, text).summary)
        return logits.reshape(batch, count)

    def score(self, fused: Fused) -> jax.Array:
        """Float32 regression outputs [B]."""
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
