"""Loss and evaluation of generative models, which write captions or answers."""

from collections.abc import Callable

import jax

from meta_opt.data.pipeline import as_arrays
from meta_opt.data.preprocessing.answers import AnswerTokenizer
from meta_opt.data.records import MemorySource
from meta_opt.data.token_counts import TokenCounter
from meta_opt.evaluators.answers import evaluate_answers
from meta_opt.losses.captioning import captioning_loss as token_loss
from meta_opt.models.generative import Generative
from meta_opt.types import Batch, PyTree
from meta_opt.workloads.workload import LossFn, SplitModule


def captioning_loss(module: SplitModule) -> LossFn:
    """Returns the loss of a batch as a function of the model's arrays.

    Args:
        module: the model; only its structure is used.
    """

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return token_loss(*module.merge(params, frozen)(batch)), {}

    return loss_fn


def captioning_evaluation(
    source: MemorySource,
    tokenizer: AnswerTokenizer,
    text_length: int,
    batch_size: int = 256,
    tokens: TokenCounter | None = None,
) -> Callable[[Generative], dict[str, float]]:
    """Returns an evaluation on ``source``: loss and metrics of generated answers.

    Args:
        source: data of a split.
        tokenizer: tokenizer of prompts and answers.
        text_length: S, number of tokens of an answer.
        batch_size: number of examples per evaluation batch.
        tokens: counter of the tokens that are read and generated.
    """
    references = list(source.captions)
    data = as_arrays(source, tokenizer, text_length, tokenizer.encode_prompts)
    return lambda model: evaluate_answers(
        model, data, references, tokenizer, batch_size, tokens=tokens
    )
