"""Classification with a generative model: the most likely of a list of answers."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.data.preprocessing.answers import AnswerTokenizer
from meta_opt.evaluators.encoding import in_batches
from meta_opt.models.answer_likelihood import score_answers
from meta_opt.models.generative import Generative
from meta_opt.types import Batch


def answer_scores(
    model: Generative,
    data: Batch,
    answers: Sequence[str],
    tokenizer: AnswerTokenizer,
    batch_size: int = 32,
) -> np.ndarray:
    """Returns log-likelihoods of answers, such as ``{"category": "fruit"}``.

    ``argmax(axis=1)`` is the model's choice among them, which needs no parsing.

    Args:
        model: the model, with or without adapters, sharded or not.
        data: arrays ``image`` [N, h, w, 3] and ``prompt`` int [N, P].
        answers: K complete texts; each is scored with its end token.
        tokenizer: tokenizer of prompts and answers.
        batch_size: number of examples per batch.

    Returns:
        float32 [N, K], nats; see `meta_opt.models.answer_likelihood`.

    Raises:
        ValueError: there are no answers, or two of them have the same tokens.
    """
    if not answers:
        raise ValueError("no answers to choose from")
    # Long enough for every complete answer with its end token.
    length = max(map(len, tokenizer.pieces(list(answers)))) + 1
    tokens = tokenizer.encode(list(answers), max(length, 2))
    rows = [tuple(row) for row in tokens.tolist()]
    for i, row in enumerate(rows):
        if (first := rows.index(row)) != i:
            raise ValueError(
                f"the answers {answers[first]!r} and {answers[i]!r} are the same tokens"
            )
    inputs = {k: data[k] for k in ("image", "prompt")}
    return in_batches(model, _Score(tuple(rows)), inputs, batch_size)


@dataclasses.dataclass(frozen=True)
class _Score:
    """Scores answers, one per row of tokens; hashable so that it compiles only once."""

    answers: tuple[tuple[int, ...], ...]

    def __call__(self, model: Generative, batch: Batch) -> jax.Array:
        prefix = model.prefix(batch["image"], batch["prompt"])
        answers = jnp.asarray(self.answers, jnp.int32)
        return score_answers(model.decoder, prefix, answers, model.config.pad_id)
