"""Metrics of a multimodal model on a split of its task."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_opt.data.preprocessing.tokenizer import TextTokenizer
from meta_opt.data.token_counts import TokenCounter, count_tokens
from meta_opt.evaluators.answers import token_sums
from meta_opt.evaluators.encoding import Apply, in_batches
from meta_opt.evaluators.retrieval import evaluate_retrieval
from meta_opt.losses.contrastive import clip_loss
from meta_opt.metrics.answers import answer_metrics
from meta_opt.metrics.classification import classification_metrics
from meta_opt.metrics.regression import sentiment_metrics
from meta_opt.models.multimodal import Multimodal
from meta_opt.types import PyTree


def multimodal_evaluation(
    kind: str,
    modalities: Sequence[str],
    arrays: dict[str, PyTree],
    captions: Sequence[str] = (),
    tokenizer: TextTokenizer | None = None,
    batch_size: int = 128,
    write: bool = False,
    tokens: TokenCounter | None = None,
) -> Callable[[Multimodal], dict[str, float]]:
    """Returns an evaluation on a split.

    Every task has ``loss``, the training loss, and ``accuracy`` in [0, 1]. This is the
    accuracy of classes; of the signs of scores (Acc-2); the mean of recall at 1 in both
    directions of retrieval, where equal captions are all correct; or the accuracy of
    caption tokens given the preceding ones. Classes and scores also have ``macro_f1``.

    Args:
        kind: kind of task, one of `meta_opt.data.samples.KINDS`.
        modalities: modalities of the samples.
        arrays: arrays of the split, see `meta_opt.workloads.multimodal_inputs.Inputs`.
        captions: texts to retrieve or to generate.
        tokenizer: tokenizer of generated captions.
        batch_size: number of samples per batch.
        write: whether to also generate captions and score them by BLEU and chrF.
        tokens: counter of the tokens that are generated.
    """
    inputs = _inputs(modalities, arrays)

    def outputs(model: Multimodal, apply: Any, *more: str) -> np.ndarray:
        data = inputs | {name: arrays[name] for name in more}
        return in_batches(model, apply, data, batch_size)

    def classify(model: Multimodal) -> dict[str, float]:
        logits, labels = outputs(model, _classify), arrays["label"]
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {
            "loss": float(jnp.mean(nats)),
            **classification_metrics(labels, np.argmax(logits, axis=-1)),
        }

    def score(model: Multimodal) -> dict[str, float]:
        found, scores = outputs(model, _score)[:, 0], arrays["score"]
        loss = float(np.mean((found - scores) ** 2))
        return {"loss": loss, **sentiment_metrics(scores, found)}

    def retrieve(model: Multimodal) -> dict[str, float]:
        pairs = outputs(model, _embed)
        image, text = pairs[:, 0], pairs[:, 1]
        metrics = evaluate_retrieval(image, text, np.asarray(captions)[:, None])
        return {
            "loss": float(
                clip_loss(jnp.asarray(image), jnp.asarray(text), model.scale)
            ),
            "accuracy": (metrics["i2t_r1"] + metrics["t2i_r1"]) / 2,
            **metrics,
        }

    def caption(model: Multimodal) -> dict[str, float]:
        nats, count, hits = outputs(model, _tokens, "caption").sum(axis=0)
        found = {"loss": float(nats / count), "accuracy": float(hits / count)}
        if write and tokenizer is not None:
            length = arrays["caption"].shape[1]
            written = outputs(model, _Write(length))
            if tokens is not None:
                tokens.add(written=count_tokens(written, tokenizer.pad_id))
            references = [(text,) for text in captions]
            found |= answer_metrics(tokenizer.decode(written), references)
        return found

    return {
        "classify": classify,
        "score": score,
        "retrieve": retrieve,
        "caption": caption,
    }[kind]


def multimodal_outputs(
    model: Multimodal,
    kind: str,
    modalities: Sequence[str],
    arrays: dict[str, PyTree],
    batch_size: int = 128,
    max_tokens: int = 32,
) -> np.ndarray:
    """Returns the outputs of a model for samples without targets.

    Args:
        model: model with the head for ``kind``.
        kind: one of `meta_opt.data.samples.KINDS`; ``summary`` for fused features.
        modalities: modalities to read.
        arrays: arrays [B, ...], see `meta_opt.workloads.multimodal_inputs.InputReader`.
        batch_size: number of samples per batch.
        max_tokens: S, maximum number of tokens of a generated caption.

    Returns:
        Class logits float32 [B, K]; scores float32 [B]; for retrieval unit-norm
        embeddings of images and texts float32 [B, 2, D]; caption tokens int32 [B, S];
        fused features float [B, D].
    """
    applied: dict[str, Apply] = {
        "classify": _classify,
        "score": _score,
        "retrieve": _embed,
        "caption": _Write(max_tokens),
        "summary": _summary,
    }
    found = in_batches(model, applied[kind], _inputs(modalities, arrays), batch_size)
    return found[:, 0] if kind == "score" else found


def _inputs(modalities: Sequence[str], arrays: dict[str, PyTree]) -> dict[str, PyTree]:
    names = [name for m in modalities for name in (m, f"{m}_present")]
    names += [name for name in ("means", "read") if name in arrays]  # for a readout
    return {name: arrays[name] for name in names}


def _summary(model: Multimodal, batch: PyTree) -> jax.Array:
    return model.fuse(batch).summary


def _classify(model: Multimodal, batch: PyTree) -> jax.Array:
    return model.classify(batch)


def _score(model: Multimodal, batch: PyTree) -> jax.Array:
    return model.score(batch)


def _embed(model: Multimodal, batch: PyTree) -> jax.Array:
    """Unit-norm embeddings of images and texts, [B, 2, embed_dim]."""
    return jnp.stack([model.embed(batch, (m,)) for m in ("image", "text")], axis=1)


def _tokens(model: Multimodal, batch: PyTree) -> jax.Array:
    text = batch["caption"]
    logits = model.caption_logits(batch, text)
    return token_sums(logits, text, model.captioner.config.pad_id)


@dataclasses.dataclass(frozen=True)
class _Write:
    max_tokens: int

    def __call__(self, model: Multimodal, batch: PyTree) -> jax.Array:
        return model.write(batch, self.max_tokens)
