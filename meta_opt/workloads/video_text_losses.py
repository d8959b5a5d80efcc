"""Losses of UniVL, VIOLET and All-in-one, as functions of model outputs and batch.

Luo et al. 2020 (arXiv:2002.06353), Fu et al. 2021 (arXiv:2111.12681), Wang et al. 2022
(arXiv:2203.07303).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meta_opt.losses.captioning import captioning_loss
from meta_opt.losses.contrastive import softmax_pair_loss
from meta_opt.losses.masked import masked_cross_entropy, masked_frame_nce
from meta_opt.losses.matching import matching_loss
from meta_opt.losses.max_margin import max_margin_loss
from meta_opt.types import check_name
from meta_opt.workloads.video_text_outputs import MaskingConfig, Outputs

TASKS = ("retrieval", "captioning", "question_answering", "sentiment")
"""Tasks that a video-text model is fine-tuned for."""


class Family(NamedTuple):
    """The losses of a published model.

    Attributes:
        losses: names of the losses that are used for every task.
        primary: name of the primary loss of each supported task, which is added to
            ``losses`` if it is not among them.
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
    """Returns the names of the losses, and of the primary one.

    Raises:
        ValueError: a name is unknown, or the family does not support the task.

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


Loss = Callable[[Any, Mapping[str, Any], MaskingConfig], jax.Array]
"""``(outputs, batch, config) -> loss []``; the outputs are `Outputs`."""


def _joint(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return max_margin_loss(outputs.similarity, config.margin, outputs.negatives)


def _align(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return max_margin_loss(outputs.alignment, config.margin, outputs.negatives)


def _masked_joint(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return max_margin_loss(outputs.masked_similarity, config.margin, outputs.negatives)


def _masked_align(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return max_margin_loss(outputs.masked_alignment, config.margin, outputs.negatives)


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
        outputs.other_clips,
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
    return softmax_pair_loss(outputs.scale * outputs.similarity, outputs.negatives)


def _answer(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    """Returns the loss of open-ended questions, of multiple-choice ones, or of both."""
    loss = jnp.float32(0)
    if "answer" in batch:
        answer = jnp.asarray(batch["answer"])
        loss += masked_cross_entropy(outputs.answer_logits, answer, answer >= 0)
    if "choice" in batch:
        choice = jnp.asarray(batch["choice"])
        loss += masked_cross_entropy(outputs.choice_logits, choice, choice >= 0)
    return loss


def _sentiment(outputs: Outputs, batch: Any, config: MaskingConfig) -> jax.Array:
    return jnp.mean((outputs.score - jnp.asarray(batch["score"])) ** 2)


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

PER_EXAMPLE = ("decoder", "answer", "sentiment")
"""Primary losses without negatives: clips are compared with their own texts only."""
