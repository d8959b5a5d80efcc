"""Metrics of a generative model on a split: loss and generated answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_opt.data.preprocessing.answers import AnswerTokenizer
from meta_opt.data.token_counts import TokenCounter, count_tokens
from meta_opt.evaluators.encoding import in_batches
from meta_opt.metrics.answers import answer_metrics
from meta_opt.models.decoding import DecodingConfig, generate
from meta_opt.models.generative import Generative
from meta_opt.types import Batch


def evaluate_answers(
    model: Generative,
    data: Batch,
    references: list[tuple[str, ...]],
    tokenizer: AnswerTokenizer,
    batch_size: int = 32,
    max_written: int = 200,
    tokens: TokenCounter | None = None,
) -> dict[str, float]:
    """Returns the loss of reference answers, and metrics of greedily decoded ones.

    Args:
        model: the model, for example `nnx.merge(graphdef, params)`.
        data: arrays of a whole split: ``image`` [N, h, w, 3], ``prompt`` int [N, P],
            ``text`` int [N, S]; generated answers have at most S tokens.
        references: all correct answers of each example.
        tokenizer: tokenizer that decodes generated answers.
        batch_size: number of examples per batch.
        max_written: number of examples, the first ones, to generate answers for.
        tokens: counter of the tokens that are read and generated.

    Returns:
        ``loss``, in nats per token of the split, and the metrics of `answer_metrics`.
    """
    inputs = {k: data[k] for k in ("image", "prompt", "text")}
    nats = in_batches(model, _nats, inputs, batch_size)
    if tokens is not None:
        pad_id = tokenizer.pad_id
        tokens.add(read=sum(count_tokens(data[k], pad_id) for k in ("prompt", "text")))
    written = write_answers(
        model,
        {k: data[k][:max_written] for k in ("image", "prompt")},
        tokenizer,
        DecodingConfig(max_tokens=data["text"].shape[1]),
        batch_size,
        tokens,
    )
    loss = float(np.sum(nats[:, 0]) / max(np.sum(nats[:, 1]), 1))
    return {"loss": loss, **answer_metrics(written, references[:max_written])}


def write_answers(
    model: Generative,
    data: Batch,
    tokenizer: AnswerTokenizer,
    config: DecodingConfig,
    batch_size: int = 32,
    tokens: TokenCounter | None = None,
) -> list[str]:
    """Generates answers to ``prompt`` int [N, P] about ``image`` [N, h, w, 3].

    Args:
        model: the model, with or without adapters.
        data: arrays ``image`` and ``prompt``.
        tokenizer: tokenizer of the answers.
        config: decoding settings, with temperature 0.
        batch_size: number of examples per batch.
        tokens: counter of the tokens of prompts and answers.
    """
    written = in_batches(model, _Write(config), data, batch_size)
    if tokens is not None:
        pad_id = tokenizer.pad_id
        tokens.add(count_tokens(data["prompt"], pad_id), count_tokens(written, pad_id))
    return tokenizer.decode(written)


@dataclasses.dataclass(frozen=True)
class _Write:
    config: DecodingConfig

    def __call__(self, model: Generative, batch: Batch) -> jax.Array:
        return generate(model, batch["image"], batch["prompt"], self.config)


def _nats(model: Generative, batch: Batch) -> jax.Array:
    logits = model.logits(batch["image"], batch["prompt"], batch["text"])
    return token_sums(logits, batch["text"], model.config.pad_id)


def token_sums(
    logits: jax.Array, text: jax.Array | np.ndarray, pad_id: int
) -> jax.Array:
    """Returns negative log-likelihood, token count and correct tokens of each row.

    Args:
        logits: float32 [B, S, K].
        text: int [B, S].
        pad_id: id of the padding token, which is ignored.

    Returns:
        float32 [B, 3].
    """
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, text)
    real = text != pad_id
    hits = (jnp.argmax(logits, axis=-1) == text) & real
    return jnp.stack([jnp.sum(x, axis=1) for x in (nats * real, real, hits)], axis=1)
