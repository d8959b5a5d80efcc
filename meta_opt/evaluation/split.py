"""A split of a source and how a model scores on it."""

from collections.abc import Callable
from typing import Any

from meta_opt.data.answers import AnswerTokenizer
from meta_opt.data.pipeline import as_arrays
from meta_opt.data.records import MemorySource
from meta_opt.data.tokenizer import TextTokenizer, load_tokenizer
from meta_opt.evaluation.answers import evaluate_answers
from meta_opt.evaluation.vision_text import evaluate
from meta_opt.evaluation.zero_shot import class_prompts


def score_on(
    source: MemorySource,
    *,
    text_length: int,
    loss: str,
    batch_size: int,
    tokenizer: TextTokenizer | None = None,
) -> Callable[[Any], dict[str, float]]:
    """Returns the evaluation on ``source``.

    Of a contrastive model: loss, retrieval and zero-shot classification. Of a
    generative one: loss, and how near the answers that it writes are.

    Args:
        source: a split; zero-shot classification is left out of one without classes.
        text_length: S, tokens of a caption or answer.
        loss: ``clip`` or ``siglip``; of a generative model ``captioning``.
        batch_size: examples at a time, and pairs contrasted in the loss. A split no
            larger than this is contrasted as a whole; splits that share it share their
            compilation.
        tokenizer: of the captions; None for the one that ships here. Of a generative
            model an `AnswerTokenizer`.
    """
    if isinstance(tokenizer, AnswerTokenizer):
        answers, references = tokenizer, list(source.captions)
        asked = as_arrays(source, answers, text_length, answers.encode_prompts)
        return lambda model: evaluate_answers(
            model, asked, references, answers, batch_size
        )
    tokenizer = tokenizer or load_tokenizer()
    data = as_arrays(source, tokenizer, text_length)
    prompts = None
    if len(source.class_names) > 1:
        prompts = class_prompts(source.class_names, tokenizer.encode, text_length)
    return lambda model: evaluate(
        model, data, prompts=prompts, loss=loss, batch_size=batch_size
    )
