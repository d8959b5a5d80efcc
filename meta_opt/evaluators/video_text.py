"""Evaluations of a video-text model on a split of its task."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_opt.data.sources.clip_questions import COUNTED, Questions
from meta_opt.data.token_counts import TokenCounter, count_tokens
from meta_opt.evaluators.retrieval import caption_groups
from meta_opt.evaluators.video_text_outputs import (
    answer_logits,
    caption_sums,
    clip_text_scores,
    sentiment_scores,
    written_captions,
)
from meta_opt.losses.contrastive import softmax_pair_loss
from meta_opt.losses.matching import (
    matching_loss,
    negative_pairs,
    rolled_negatives,
)
from meta_opt.losses.max_margin import max_margin_loss
from meta_opt.metrics.answers import plain
from meta_opt.metrics.captions import caption_metrics
from meta_opt.metrics.question_answering import count_metrics, multiple_choice_accuracy
from meta_opt.metrics.regression import sentiment_metrics
from meta_opt.metrics.retrieval import retrieval_metrics
from meta_opt.models.video_text import VideoText
from meta_opt.types import PyTree

Evaluation = Callable[[VideoText], dict[str, float]]
"""``model -> metrics``."""


def retrieval_evaluation(
    arrays: Mapping[str, PyTree],
    primary: str,
    margin: float,
    batch_size: int = 128,
    *,
    false_negatives: bool = False,
) -> Evaluation:
    """Returns an evaluation of retrieval, of clips by texts and of texts by clips.

    Clips and texts are ranked by the cross encoder, which reads every pair, or for the
    loss ``contrastive`` by the cosines of their embeddings. Clips with equal captions
    are all correct.

    Args:
        arrays: arrays of the split.
        primary: primary loss, ``align``, ``matching`` or ``contrastive``.
        margin: margin of ``align``.
        batch_size: number of clips per batch.
        false_negatives: whether clips with equal captions are negatives in ``align``
            and ``contrastive``, as in training.

    Returns:
        An evaluation with ``loss`` over all pairs of the split (``matching``: one
        negative each), ``t2v_r1``, ``t2v_r5``, ``t2v_r10``, ``t2v_medr`` of clips
        for texts, and ``v2t_*`` of texts for clips.
    """
    clips = {k: arrays[k] for k in ("frames", "present")}
    groups = caption_groups(arrays["text"])

    def evaluate(model: VideoText) -> dict[str, float]:
        contrastive = primary == "contrastive"
        scores = clip_text_scores(
            *(model, clips, arrays["text_features"], batch_size),
            from_embeddings=contrastive,
        )
        differ = negative_pairs(jnp.asarray(groups))
        negatives = None if false_negatives else differ
        logits = jnp.asarray(scores)
        if contrastive:
            loss = softmax_pair_loss(model.scale * logits, negatives)
        elif primary == "align":
            loss = max_margin_loss(logits, margin, negatives)
        else:
            loss = _matching_of_scores(logits, differ)
        metrics = retrieval_metrics(scores, groups)
        return {"loss": float(loss), **_ways(metrics)}

    return evaluate


def _matching_of_scores(scores: jax.Array, differ: jax.Array) -> jax.Array:
    """Returns ``matching`` of each clip with its own text and the next clip's text."""
    size = len(scores)
    next_one = (jnp.arange(size), rolled_negatives(size))
    ones = jnp.ones(size, bool)
    return matching_loss(
        jnp.concatenate([jnp.diagonal(scores), scores[next_one]]),
        jnp.concatenate([ones, ~ones]),
        jnp.concatenate([ones, differ[next_one]]),
    )


def _ways(metrics: Mapping[str, float]) -> dict[str, float]:
    names = {"i2t": "v2t", "t2i": "t2v"}
    return {names[k[:3]] + k[3:]: value for k, value in metrics.items()}


def captioning_evaluation(
    arrays: Mapping[str, PyTree],
    captions: Sequence[Sequence[str]],
    decode: Callable[[np.ndarray], list[str]],
    batch_size: int = 128,
    tokens: TokenCounter | None = None,
) -> Evaluation:
    """Returns an evaluation of captioning.

    Args:
        arrays: arrays of the split, with one row per clip.
        captions: all captions of each clip; ``arrays`` has the first.
        decode: converts rows of the decoder's tokens to texts.
        batch_size: number of clips per batch.
        tokens: counter of the tokens that are generated.

    Returns:
        An evaluation with ``loss`` and ``accuracy`` of a caption's tokens given the
        preceding ones (only tokens that are in training captions), ``exact_match`` with
        any of a clip's captions in percent, and `caption_metrics` of generated
        captions.
    """
    clips = {k: arrays[k] for k in ("frames", "present")}
    length = arrays["caption"].shape[1]

    def evaluate(model: VideoText) -> dict[str, float]:
        data = clips | {"caption": arrays["caption"]}
        nats, count, hits = caption_sums(model, data, batch_size).sum(axis=0)
        words = written_captions(model, clips, length, batch_size)
        if tokens is not None:
            tokens.add(written=count_tokens(words))
        written = decode(words)
        same = [
            plain(text) in map(plain, several)
            for text, several in zip(written, captions, strict=True)
        ]
        return {
            "loss": float(nats / max(count, 1)),
            "accuracy": float(hits / max(count, 1)),
            "exact_match": 100.0 * float(np.mean(same)),
            **caption_metrics(written, captions),
        }

    return evaluate


def question_evaluation(
    arrays: Mapping[str, PyTree],
    questions: Questions,
    answers: Sequence[str],
    batch_size: int = 128,
) -> Evaluation:
    """Returns an evaluation of open-ended, multiple-choice and counting questions.

    Args:
        arrays: arrays of the split.
        questions: questions of the split.
        answers: vocabulary of answers.
        batch_size: number of questions per batch.

    Returns:
        An evaluation with ``loss``; with a vocabulary also ``accuracy`` over all
        questions (answers outside of it count as wrong) and for each kind of question
        (``accuracy_category``, ...), and ``count_mse`` of the most likely counts; with
        choices also ``choice_accuracy``.
    """
    names = ("frames", "present", "question", "choices")
    data = {k: arrays[k] for k in names if k in arrays}
    right, choice = arrays.get("answer"), arrays.get("choice")
    kinds = np.asarray(questions.kind)
    numbers = [i for i, answer in enumerate(answers) if answer.isdecimal()]
    counted = np.isin(kinds, COUNTED)

    def evaluate(model: VideoText) -> dict[str, float]:
        both = answer_logits(model, data, batch_size)
        logits, offered = both[:, : len(answers)], both[:, len(answers) :]
        found = {"loss": 0.0}
        if right is not None:
            hits = np.argmax(logits, axis=1) == right
            known = right >= 0
            found["loss"] += _mean_nats(logits[known], right[known])
            found["accuracy"] = float(hits.mean())
            for k in sorted({*kinds}):
                found[f"accuracy_{k}"] = float(hits[kinds == k].mean())
        if choice is not None:
            found["loss"] += _mean_nats(offered, choice)
            found["choice_accuracy"] = multiple_choice_accuracy(offered, choice)
        if numbers and counted.any():
            values = np.asarray([int(answers[i]) for i in numbers])
            likeliest = values[np.argmax(logits[counted][:, numbers], axis=1)]
            counts = np.asarray([int(a) for a in np.asarray(questions.answer)[counted]])
            span = {"lowest": int(values.min()), "highest": int(values.max())}
            mse = count_metrics(counts, likeliest.astype(float), **span)["mse"]
            found["count_mse"] = mse
        return found

    return evaluate


def sentiment_evaluation(
    arrays: Mapping[str, PyTree], batch_size: int = 128
) -> Evaluation:
    """Returns an evaluation: ``loss``, the squared error, and `sentiment_metrics`."""
    data = {k: arrays[k] for k in ("frames", "present", "text_features")}
    scores = arrays["score"]

    def evaluate(model: VideoText) -> dict[str, float]:
        found = sentiment_scores(model, data, batch_size)
        loss = float(np.mean((found - scores) ** 2))
        return {"loss": loss, **sentiment_metrics(scores, found)}

    return evaluate


def _mean_nats(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy; 0 without labels."""
    if not len(labels):
        return 0.0
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return float(jnp.mean(nats))
