"""Outputs of a video-text model on a batch, unmasked and masked, for its losses."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meta_opt.losses.contrastive import similarity_logits
from meta_opt.losses.masked import draw_mask, mask_tokens
from meta_opt.losses.matching import negative_pairs, rolled_negatives
from meta_opt.models.fusion import Fused, Tokens
from meta_opt.models.video_text import VideoText
from meta_opt.types import PyTree


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Masking rates, and margins of the ranking losses.

    Attributes:
        text_rate: probability that a token is masked.
        frame_rate: probability that a frame is masked.
        frame_scale: inverse temperature of the masked-frame loss.
        margin: margin of the max-margin losses.
        false_negatives: whether two captions of one clip, equal captions of two clips,
            and frames of a clip that is in a batch twice count as negatives of each
            other. They do in the published losses, which treat each row of a batch as a
            different clip. In ``matching`` equal captions never count as negatives.
    """

    text_rate: float = 0.15
    frame_rate: float = 0.15
    frame_scale: float = 10.0
    margin: float = 0.1
    false_negatives: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("text_rate", "frame_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1]")


class Masks(NamedTuple):
    """The masks of a batch.

    Attributes:
        text: int [B, S], token ids after masking.
        words: bool [B, S], True at tokens to predict.
        frames: bool [B, T], True at frames to predict.
    """

    text: jax.Array
    words: jax.Array
    frames: jax.Array


@dataclasses.dataclass(frozen=True)
class Masking:
    """Draws the masks of batches.

    Attributes:
        config: masking rates.
        mask_id: id of the tokenizer's mask token.
        special_ids: ids of the tokenizer's padding, start and end tokens.
        vocabulary_size: vocabulary size of the tokenizer.
    """

    config: MaskingConfig
    mask_id: int
    special_ids: tuple[int, ...]
    vocabulary_size: int

    def draw(self, key: jax.Array, batch: Mapping[str, Any]) -> Masks:
        """Draws the masks of a batch with a random key."""
        of_text, of_frames = jax.random.split(key)
        text, words = mask_tokens(
            of_text,
            jnp.asarray(batch["text"]),
            self.mask_id,
            self.vocabulary_size,
            self.special_ids,
            self.config.text_rate,
        )
        present = jnp.asarray(batch["present"])
        frames = draw_mask(of_frames, present, self.config.frame_rate)
        return Masks(text, words, frames)


class Outputs:
    """Outputs of a model on a batch, each computed on first use.

    Args:
        model: model with the heads of the outputs that are used.
        batch: arrays [B, ...] of `meta_opt.workloads.video_text_data.ClipInputs`.
        masks: masks of the batch.
        false_negatives: see `MaskingConfig`.
    """

    def __init__(
        self,
        model: VideoText,
        batch: Mapping[str, PyTree],
        masks: Masks,
        false_negatives: bool = False,
    ) -> None:
        self.model, self.batch, self.masks = model, batch, masks
        self._false_negatives = false_negatives
        self.present = jnp.asarray(batch["present"])
        # Masked tokens outside the vocabulary of training texts cannot be predicted.
        self.words = jnp.asarray(batch["words"])
        self.masked_words = masks.words & (self.words > 0)

    @functools.cached_property
    def other_clips(self) -> jax.Array | None:
        """Which rows are different clips, bool [B, B]; None if all count as such."""
        if self._false_negatives:
            return None
        return negative_pairs(jnp.asarray(self.batch["clip"]))

    @functools.cached_property
    def negatives(self) -> jax.Array | None:
        """Which clips and texts are negatives, bool [B, B]; None: all in other rows.

        Negatives are texts of other clips that are not equal to the clip's own text.
        """
        if self.other_clips is None:
            return None
        return self.other_clips & negative_pairs(jnp.asarray(self.batch["text"]))

    @functools.cached_property
    def _features(self) -> jax.Array:
        return self.model.frame_features(self.batch["frames"])

    @functools.cached_property
    def video(self) -> Tokens:
        """Features of the frames [B, T, D]."""
        return self.model.video(self._features, self.present)

    @functools.cached_property
    def masked_video(self) -> Tokens:
        """Features of the masked frames [B, T, D]."""
        return self.model.video(self._features, self.present, self.masks.frames)

    @functools.cached_property
    def text(self) -> Tokens:
        """Features of the texts [B, S, D]."""
        return self.model.text(self.batch["text_features"])

    @functools.cached_property
    def masked_text(self) -> Tokens:
        """Features of the masked texts [B, S, D]."""
        return self.model.read(self.masks.text)

    @functools.cached_property
    def video_z(self) -> jax.Array:
        """Unit-norm embeddings of clips [B, E]."""
        return self.model.embed("video", self.video)

    @functools.cached_property
    def text_z(self) -> jax.Array:
        """Unit-norm embeddings of texts [B, E]."""
        return self.model.embed("text", self.text)

    @property
    def scale(self) -> jax.Array:
        """Inverse temperature of the contrastive loss."""
        return self.model.scale

    @functools.cached_property
    def similarity(self) -> jax.Array:
        """Cosine similarities of clips and texts [B, B] from the dual encoder."""
        return similarity_logits(self.video_z, self.text_z, 1.0)

    @functools.cached_property
    def masked_similarity(self) -> jax.Array:
        """`similarity` of masked clips and masked texts."""
        video, text = self.masked_video, self.masked_text
        return similarity_logits(
            self.model.embed("video", video), self.model.embed("text", text), 1.0
        )

    @functools.cached_property
    def alignment(self) -> jax.Array:
        """Matching scores of clips and texts [B, B] from the cross encoder."""
        return self.model.pair_logits(self.video, self.text)

    @functools.cached_property
    def masked_alignment(self) -> jax.Array:
        """`alignment` of masked clips and masked texts."""
        return self.model.pair_logits(self.masked_video, self.masked_text, prune=False)

    @functools.cached_property
    def fused(self) -> Fused:
        """Fused features of clips with their own texts."""
        return self.model.cross(self.video, self.text)

    @functools.cached_property
    def masked_fused(self) -> Fused:
        """Fused features of masked clips with their own masked texts."""
        return self.model.cross(self.masked_video, self.masked_text, prune=False)

    @functools.cached_property
    def pairs(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits [2 B] of clips with their own and another text, labels and mask.

        The mask excludes negatives with an equal text or clip.
        """
        size = len(self.present)
        other = rolled_negatives(size)
        negatives = self.negatives
        if negatives is None:
            negatives = negative_pairs(jnp.asarray(self.batch["text"]))
        wrong = jax.tree.map(lambda x: x[other], self.text)
        right = self.model.match(self.fused)
        logits = self.model.match(self.model.cross(self.video, wrong))
        ones = jnp.ones(size, bool)
        return (
            jnp.concatenate([right, logits]),
            jnp.concatenate([ones, ~ones]),
            jnp.concatenate([ones, negatives[jnp.arange(size), other]]),
        )

    @functools.cached_property
    def language_logits(self) -> jax.Array:
        """Logits of masked tokens [B, S, K]."""
        length = self.masks.words.shape[1]
        return self.model.language_logits(self.masked_fused, length)

    @functools.cached_property
    def frame_predictions(self) -> jax.Array:
        """Predicted features of masked frames, unit vectors [B, T, F]."""
        return self.model.frames(self.masked_fused, self.present.shape[1])

    @functools.cached_property
    def visual_logits(self) -> jax.Array:
        """Logits of masked visual tokens [B, T, K]."""
        return self.model.visual_logits(self.masked_fused, self.present.shape[1])

    @functools.cached_property
    def visual_tokens(self) -> jax.Array:
        """Visual tokens of the frames, int [B, T]."""
        return self.model.visual_tokens(self.batch["targets"])

    @functools.cached_property
    def captioning(self) -> tuple[jax.Array, ...]:
        """Arguments of `captioning_loss` for captions generated from clips alone."""
        fused = self.model.cross(self.video)
        return self.model.caption_states(fused, self.batch["caption"])

    @functools.cached_property
    def masked_captioning(self) -> tuple[jax.Array, ...]:
        """Arguments of `captioning_loss` for masked clips and masked captions."""
        return self.model.caption_states(self.masked_fused, self.batch["caption"])

    @functools.cached_property
    def answer_logits(self) -> jax.Array:
        """Logits of the answers to questions [B, K]."""
        question = self.model.text(self.batch["question"])
        return self.model.answer_logits(self.model.cross(self.video, question))

    @functools.cached_property
    def choice_logits(self) -> jax.Array:
        """Logits of the options of questions [B, C]."""
        return self.model.choice_logits(self.video, self.batch["choices"])

    @functools.cached_property
    def score(self) -> jax.Array:
        """Predicted sentiment [B]."""
        return self.model.score(self.fused)
