"""A split of a source and how a model scores on it."""

from collections.abc import Callable

from meta_opt.data.pipeline import as_arrays
from meta_opt.data.records import MemorySource
from meta_opt.data.tokenizer import TextTokenizer, load_tokenizer
from meta_opt.evaluation.vision_text import evaluate
from meta_opt.evaluation.zero_shot import class_prompts
from meta_opt.models.vision_text import VisionText


def score_on(
    source: MemorySource,
    *,
    text_length: int,
    loss: str,
    batch_size: int,
    tokenizer: TextTokenizer | None = None,
) -> Callable[[VisionText], dict[str, float]]:
    """Returns the evaluation on ``source``: loss, retrieval and zero-shot.

    Args:
        source: a split; zero-shot classification is left out of one without classes.
        text_length: S, tokens of a caption.
        loss: ``clip`` or ``siglip``.
        batch_size: pairs contrasted in the loss. A split no larger than this is
            contrasted as a whole; splits that share it share their compilation.
        tokenizer: of the captions; None for the one that ships here.
    """
    tokenizer = tokenizer or load_tokenizer()
    data = as_arrays(source, tokenizer, text_length)
    prompts = None
    if len(source.class_names) > 1:
        prompts = class_prompts(source.class_names, tokenizer.encode, text_length)
    return lambda model: evaluate(
        model, data, prompts=prompts, loss=loss, batch_size=batch_size
    )
