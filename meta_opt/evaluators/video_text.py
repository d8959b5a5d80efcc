"""Evaluations of a video-text model on a split of its task."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_opt.data.sources.clip_questions import COUNTED, Questions
from meta_opt.evaluators.answers import token_sums
from meta_opt.evaluators.encoding import in_batches
from meta_opt.evaluators.retrieval import caption_groups
from meta_opt.losses.contrastive import clip_loss
from meta_opt.losses.matching import matching_loss, rolled_negatives
from meta_opt.losses.max_margin import max_margin_loss
from meta_opt.metrics.answers import plain
from meta_opt.metrics.captions import caption_metrics
from meta_opt.metrics.question_answering import count_metrics, multiple_choice_accuracy
from meta_opt.metrics.regression import sentiment_metrics
from meta_opt.metrics.retrieval import retrieval_metrics
from meta_opt.models.fusion import Tokens
from meta_opt.models.video_text import VideoText
from meta_opt.types import PyTree

Evaluation = Callable[[VideoText], dict[str, float]]
"""``model -> metrics``."""


def retrieval_evaluation(
    arrays: Mapping[str, PyTree], primary: str, margin: float, batch_size: int = 128
) -> Evaluation:
    """Evaluation of retrieval, of clips for texts and of texts for clips.

    Ranks are by the cross encoder, which reads every clip with every text; for the loss
    ``contrastive`` by the unit vectors of clips and texts. Clips of equal name are all
    correct.

    Args:
        arrays: of the split.
        primary: the loss ``align``, ``matching`` or ``contrastive``.
        margin: of ``align``.
        batch_size: clips at a time.

    Returns:
        An evaluation with ``loss`` over all pairs of the split (``matching``: one
        negative for each), ``t2v_r1``, ``t2v_r5``, ``t2v_r10``, ``t2v_medr`` of clips
        for texts, and ``v2t_*`` of texts for clips.
    """
    clips = {k: arrays[k] for k in ("frames", "present")}
    texts = {"text_features": arrays["text_features"]}
    groups = caption_groups(arrays["text"])

    def evaluate(model: VideoText) -> dict[str, float]:
        video = in_batches(model, _video, clips, batch_size)
        text = in_batches(model, _text, texts, batch_size)
        if primary == "contrastive":
            video = in_batches(model, _Embed("video"), {"x": video}, batch_size)
            text = in_batches(model, _Embed("text"), {"x": text}, batch_size)
            scores = video @ text.T
            loss = clip_loss(jnp.asarray(video), jnp.asarray(text), model.scale)
        else:
            scores = pair_scores(model, video, text, batch_size)
            loss = _loss_of_scores(jnp.asarray(scores), primary, margin)
        metrics = retrieval_metrics(scores, groups)
        return {"loss": float(loss), **_ways(metrics)}

    return evaluate


def pair_scores(
    model: VideoText, video: np.ndarray, text: np.ndarray, batch_size: int
) -> np.ndarray:
    """Logits of every clip with every text, float32 [N, N], a text at a time.

    Args:
        model: with a head for matching.
        video: packed tokens of N clips, see `pack`.
        text: of N texts.
        batch_size: clips at a time.
    """
    columns = [
        in_batches(
            model,
            _match,
            {
                "video": video,
                "text": np.broadcast_to(one[None], (len(video), *one.shape)),
            },
            batch_size,
        )
        for one in text
    ]
    return np.stack(columns, axis=1)


def _loss_of_scores(scores: jax.Array, primary: str, margin: float) -> jax.Array:
    if primary == "align":
        return max_margin_loss(scores, margin)
    size = len(scores)
    wrong = scores[jnp.arange(size), rolled_negatives(size)]
    matches = jnp.arange(2 * size) < size
    return matching_loss(jnp.concatenate([jnp.diagonal(scores), wrong]), matches)


def _ways(metrics: Mapping[str, float]) -> dict[str, float]:
    names = {"i2t": "v2t", "t2i": "t2v"}
    return {names[k[:3]] + k[3:]: value for k, value in metrics.items()}


def captioning_evaluation(
    arrays: Mapping[str, PyTree],
    captions: Sequence[Sequence[str]],
    decode: Callable[[np.ndarray], list[str]],
    batch_size: int = 128,
) -> Evaluation:
    """Evaluation of captioning.

    Args:
        arrays: of the split, a row for each clip.
        captions: all captions of each clip; ``arrays`` has the first.
        decode: from rows of the decoder's tokens to texts.
        batch_size: clips at a time.

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
        sums = in_batches(model, _caption_sums, data, batch_size)
        nats, tokens, hits = sums.sum(axis=0)
        written = decode(in_batches(model, _Write(length), clips, batch_size))
        same = [
            plain(text) in map(plain, several)
            for text, several in zip(written, captions, strict=True)
        ]
        return {
            "loss": float(nats / max(tokens, 1)),
            "accuracy": float(hits / max(tokens, 1)),
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
    """Evaluation of answers from a vocabulary, of choices and of counts.

    Args:
        arrays: of the split.
        questions: of the split.
        answers: the vocabulary.
        batch_size: questions at a time.

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
        both = in_batches(model, _answers, data, batch_size)
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
    """Evaluation of sentiment: ``loss``, squared error, and `sentiment_metrics`."""
    data = {k: arrays[k] for k in ("frames", "present", "text_features")}
    scores = arrays["score"]

    def evaluate(model: VideoText) -> dict[str, float]:
        found = in_batches(model, _score, data, batch_size)
        loss = float(np.mean((found - scores) ** 2))
        return {"loss": loss, **sentiment_metrics(scores, found)}

    return evaluate


def _mean_nats(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy; 0 without labels."""
    if not len(labels):
        return 0.0
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return float(jnp.mean(nats))


def pack(tokens: Tokens) -> jax.Array:
    """Tokens and mask as one array [B, S, D + 1]; the last feature is the mask."""
    return jnp.concatenate(
        [tokens.x, tokens.real[..., None].astype(tokens.x.dtype)], axis=-1
    )


def unpack(packed: jax.Array) -> Tokens:
    """The inverse of `pack`."""
    return Tokens(packed[..., :-1], packed[..., -1] > 0)


def _tokens(model: VideoText, batch: PyTree) -> Tokens:
    return model.video(model.frame_features(batch["frames"]), batch["present"])


def _video(model: VideoText, batch: PyTree) -> jax.Array:
    return pack(_tokens(model, batch))


def _text(model: VideoText, batch: PyTree) -> jax.Array:
    return pack(model.text(batch["text_features"]))


def _match(model: VideoText, batch: PyTree) -> jax.Array:
    return model.match(model.cross(unpack(batch["video"]), unpack(batch["text"])))


def _caption_sums(model: VideoText, batch: PyTree) -> jax.Array:
    states, _, text, _ = model.caption_states(
        model.cross(_tokens(model, batch)), batch["caption"]
    )
    logits = model.captioner.decoder.logits(states)
    return token_sums(logits, text, model.captioner.config.pad_id)


def _answers(model: VideoText, batch: PyTree) -> jax.Array:
    """Logits of the vocabulary's answers and of the options, [B, K + C]."""
    video = _tokens(model, batch)
    found = []
    if "question" in batch:
        fused = model.cross(video, model.text(batch["question"]))
        found.append(model.answer_logits(fused))
    if "choices" in batch:
        found.append(model.choice_logits(video, batch["choices"]))
    return jnp.concatenate(found, axis=1)


def _score(model: VideoText, batch: PyTree) -> jax.Array:
    fused = model.cross(_tokens(model, batch), model.text(batch["text_features"]))
    return model.score(fused)


@dataclasses.dataclass(frozen=True)
class _Embed:
    modality: str

    def __call__(self, model: VideoText, batch: PyTree) -> jax.Array:
        return model.embed(self.modality, unpack(batch["x"]))


@dataclasses.dataclass(frozen=True)
class _Write:
    max_tokens: int

    def __call__(self, model: VideoText, batch: PyTree) -> jax.Array:
        return model.write(model.cross(_tokens(model, batch)), self.max_tokens)
