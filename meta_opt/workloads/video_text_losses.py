"""The losses of UniVL, VIOLET and All-in-one, each of the model's outputs and a batch.

Luo et al. 2020 (arXiv:2002.06353), Fu et al. 2021 (arXiv:2111.12681), Wang et al. 2022
(arXiv:2203.07303).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meta_opt.losses.captioning import captioning_loss
from meta_opt.losses.contrastive import clip_loss, similarity_logits
from meta_opt.losses.masked import (
    draw_mask,
    mask_tokens,
    masked_cross_entropy,
    masked_frame_nce,
)
from meta_opt.losses.matching import matching_loss, rolled_negatives
from meta_opt.losses.max_margin import max_margin_loss
from meta_opt.models.fusion import Fused, Tokens
from meta_opt.models.video_text import VideoText
from meta_opt.types import PyTree, check_name

TASKS = ("retrieval", "captioning", "question_answering", "sentiment")
"""What a video-text model is fine-tuned for."""


class Family(NamedTuple):
    """How a published model is trained.

    Attributes:
        losses: of every task.
        primary: by task that it can do, the loss of that task; it is one more where it
            is not among the losses.
    """

    losses: tuple[str, ...]
    primary: Mapping[str, str]


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "univl": Family(
            (
                *("joint", "align", "masked_language", "masked_frame"),
                *("masked_joint", "masked_align", "decoder", "masked_decoder"),
            ),
            {"retrieval": "align", "captioning": "decoder", "sentiment": "sentiment"},
        ),
        "violet": Family(
            ("matching", "masked_text", "masked_visual"),
            {"retrieval": "matching", "question_answering": "answer"},
        ),
        "all_in_one": Family(
            ("contrastive", "masked_language", "matching"),
            {"retrieval": "contrastive", "question_answering": "answer"},
        ),
    }
)
"""Families of models by name."""


def losses_of(family: str, task: str) -> tuple[tuple[str, ...], str]:
    """Names of the losses, and the primary one.

    Raises:
        ValueError: an unknown name, or a task that the family cannot do.

    >>> losses_of("violet", "question_answering")
    (('matching', 'masked_text', 'masked_visual', 'answer'), 'answer')
    """
    check_name("family", family, FAMILIES)
    check_name("task", task, TASKS)
    names, primaries = FAMILIES[family]
    if task not in primaries:
        able = [name for name, other in FAMILIES.items() if task in other.primary]
        raise ValueError(
            f"family={family!r} has no loss for task={task!r}: it can do "
            f"{', '.join(primaries)}, and {task} can be done by {', '.join(able)}"
        )
    primary = primaries[task]
    return (names if primary in names else (*names, primary)), primary


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """How much is hidden, and how hard the ranking losses are.

    Attributes:
        text_rate: probability of a token.
        frame_rate: probability of a frame.
        frame_scale: inverse temperature of masked frames.
        margin: of the max-margin losses.
    """

    text_rate: float = 0.15
    frame_rate: float = 0.15
    frame_scale: float = 10.0
    margin: float = 0.1

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("text_rate", "frame_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1]")


class Masks(NamedTuple):
    """What is hidden of a batch.

    Attributes:
        text: int [B, S], the tokens that are read instead.
        words: bool [B, S], true at tokens to predict.
        frames: bool [B, T], true at frames to predict.
    """

    text: jax.Array
    words: jax.Array
    frames: jax.Array


@dataclasses.dataclass(frozen=True)
class Masking:
    """Draws masks.

    Attributes:
        config: rates.
        mask_id: of the tokenizer.
        special_ids: of the tokenizer: padding, start and end.
        vocabulary_size: of the tokenizer.
    """

    config: MaskingConfig
    mask_id: int
    special_ids: tuple[int, ...]
    vocabulary_size: int

    def draw(self, key: jax.Array, batch: Mapping[str, Any]) -> Masks:
        """Draws the masks of a batch; another key gives others."""
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
    """What a model makes of a batch, each part computed when first asked for.

    Args:
        model: with the heads that are asked for.
        batch: arrays [B, ...] of `meta_opt.workloads.video_text_data.ClipInputs`.
        masks: of it.
    """

    def __init__(
        self, model: VideoText, batch: Mapping[str, PyTree], masks: Masks
    ) -> None:
        self.model, self.batch, self.masks = model, batch, masks
        self.present = jnp.asarray(batch["present"])
        # A masked token that no training text has cannot be predicted.
        self.words = jnp.asarray(batch["words"])
        self.masked_words = masks.words & (self.words > 0)

    @functools.cached_property
    def _features(self) -> jax.Array:
        return self.model.frame_features(self.batch["frames"])

    @functools.cached_property
    def video(self) -> Tokens:
        """Of the frames [B, T, D]."""
        return self.model.video(self._features, self.present)

    @functools.cached_property
    def masked_video(self) -> Tokens:
        """Of the frames where some are hidden."""
        return self.model.video(self._features, self.present, self.masks.frames)

    @functools.cached_property
    def text(self) -> Tokens:
        """Of the texts [B, S, D]."""
        return self.model.text(self.batch["text_features"])

    @functools.cached_property
    def masked_text(self) -> Tokens:
        """Of the texts where some tokens are hidden."""
        return self.model.read(self.masks.text)

    @functools.cached_property
    def video_z(self) -> jax.Array:
        """Unit vectors of clips [B, E]."""
        return self.model.embed("video", self.video)

    @functools.cached_property
    def text_z(self) -> jax.Array:
        """Unit vectors of texts [B, E]."""
        return self.model.embed("text", self.text)

    @property
    def scale(self) -> jax.Array:
        """Inverse temperature of the contrastive loss."""
        return self.model.scale

    @functools.cached_property
    def similarity(self) -> jax.Array:
        """Cosines of clips and texts [B, B], from each alone."""
        return similarity_logits(self.video_z, self.text_z, 1.0)

    @functools.cached_property
    def masked_similarity(self) -> jax.Array:
        """`similarity` where some of both is hidden."""
        video, text = self.masked_video, self.masked_text
        return similarity_logits(
            self.model.embed("video", video), self.model.embed("text", text), 1.0
        )

    @functools.cached_property
    def alignment(self) -> jax.Array:
        """How well clips and texts match [B, B], by the cross encoder."""
        return self.model.pair_logits(self.video, self.text)

    @functools.cached_property
    def masked_alignment(self) -> jax.Array:
        """`alignment` where some of both is hidden."""
        return self.model.pair_logits(self.masked_video, self.masked_text)

    @functools.cached_property
    def fused(self) -> Fused:
        """Clips with their own texts."""
        return self.model.cross(self.video, self.text)

    @functools.cached_property
    def masked_fused(self) -> Fused:
        """Clips with their own texts, some of both hidden."""
        return self.model.cross(self.masked_video, self.masked_text)

    @functools.cached_property
    def pairs(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits [2 B] of matches and of clips with another's text, which, and mask.

        Texts that are equal by chance are no negatives.
        """
        size = len(self.present)
        other = rolled_negatives(size)
        wrong = jax.tree.map(lambda x: x[other], self.text)
        right = self.model.match(self.fused)
        logits = self.model.match(self.model.cross(self.video, wrong))
        tokens = jnp.asarray(self.batch["text"])
        differ = jnp.any(tokens != tokens[other], axis=1)
        ones = jnp.ones(size, bool)
        return (
            jnp.concatenate([right, logits]),
            jnp.concatenate([ones, ~ones]),
            jnp.concatenate([ones, differ]),
        )

    @functools.cached_property
    def language_logits(self) -> jax.Array:
        """Of the tokens behind masks [B, S, K]."""
        length = self.masks.words.shape[1]
        return self.model.language_logits(self.masked_fused, length)

    @functools.cached_property
    def frame_predictions(self) -> jax.Array:
        """Of the frames behind masks, unit vectors [B, T, F]."""
        return self.model.frames(self.masked_fused, self.present.shape[1])

    @functools.cached_property
    def visual_logits(self) -> jax.Array:
        """Of the visual tokens behind masks [B, T, K]."""
        return self.model.visual_logits(self.masked_fused, self.present.shape[1])

    @functools.cached_property
    def visual_tokens(self) -> jax.Array:
        """Those of the frames, int [B, T]."""
        return self.model.visual_tokens(self.batch["targets"])

    @functools.cached_property
    def captioning(self) -> tuple[jax.Array, ...]:
        """What `captioning_loss` takes: names written from the clips alone."""
        fused = self.model.cross(self.video)
        return self.model.caption_states(fused, self.batch["caption"])

    @functools.cached_property
    def masked_captioning(self) -> tuple[jax.Array, ...]:
        """Names written from what is not hidden of clips and names."""
        return self.model.caption_states(self.masked_fused, self.batch["caption"])

    @functools.cached_property
    def answer_logits(self) -> jax.Array:
        """Of the questions' answers [B, K]."""
        question = self.model.text(self.batch["question"])
        return self.model.answer_logits(self.model.cross(self.video, question))

    @functools.cached_property
    def choice_logits(self) -> jax.Array:
        """Of the answers that are offered [B, C]."""
        return self.model.choice_logits(self.video, self.batch["choices"])

    @functools.cached_property
    def score(self) -> jax.Array:
        """Predicted sentiment [B]."""
        return self.model.score(self.fused)


Loss = Callable[[Any, Mapping[str, Any], MaskingConfig], jax.Array]
"""``(outputs, batch, config) -> loss []``; the outputs are `Outputs`."""


def _joint(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return max_margin_loss(outputs.similarity, config.margin)


def _align(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return max_margin_loss(outputs.alignment, config.margin)


def _masked_joint(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return max_margin_loss(outputs.masked_similarity, config.margin)


def _masked_align(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return max_margin_loss(outputs.masked_alignment, config.margin)


def _masked_language(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return masked_cross_entropy(
        outputs.language_logits, outputs.words, outputs.masked_words
    )


def _masked_frame(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return masked_frame_nce(
        outputs.frame_predictions,
        jnp.asarray(batch["targets"]),
        outputs.masks.frames,
        outputs.present,
        config.frame_scale,
    )


def _masked_visual(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return masked_cross_entropy(
        outputs.visual_logits, outputs.visual_tokens, outputs.masks.frames
    )


def _decoder(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    hidden, embedding, text, real = outputs.captioning
    return captioning_loss(hidden, embedding, text, real)


def _masked_decoder(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    hidden, embedding, text, real = outputs.masked_captioning
    return captioning_loss(hidden, embedding, text, real)


def _matching(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    logits, matches, mask = outputs.pairs
    return matching_loss(logits, matches, mask)


def _contrastive(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return clip_loss(outputs.video_z, outputs.text_z, outputs.scale)


def _answer(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return answer_loss(
        outputs.answer_logits, batch["answer"], outputs.choice_logits, batch["choice"]
    )


def _sentiment(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return jnp.mean((outputs.score - jnp.asarray(batch["score"])) ** 2)


def answer_loss(
    answer_logits: jax.Array,
    answer: jax.Array,
    choice_logits: jax.Array,
    choice: jax.Array,
) -> jax.Array:
    """Cross-entropy of answers out of the vocabulary plus that of choices.

    Args:
        answer_logits: [B, K].
        answer: int [B]; -1, an answer that is not in the vocabulary, does not count.
        choice_logits: [B, C].
        choice: int [B].
    """
    answer, choice = jnp.asarray(answer), jnp.asarray(choice)
    open_ended = masked_cross_entropy(answer_logits, answer, answer >= 0)
    return open_ended + masked_cross_entropy(choice_logits, choice, choice >= 0)


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "joint": _joint,
        "align": _align,
        "masked_language": _masked_language,
        "masked_frame": _masked_frame,
        "masked_joint": _masked_joint,
        "masked_align": _masked_align,
        "decoder": _decoder,
        "masked_decoder": _masked_decoder,
        "matching": _matching,
        "masked_text": _masked_language,
        "masked_visual": _masked_visual,
        "contrastive": _contrastive,
        "answer": _answer,
        "sentiment": _sentiment,
    }
)
"""Losses by name."""
