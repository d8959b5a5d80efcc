"""Loss and evaluation of dual encoders for image-text retrieval."""

from collections.abc import Callable

import jax
import numpy as np

from meta_opt.data.pipeline import as_arrays
from meta_opt.data.preprocessing.tokenizer import TextTokenizer
from meta_opt.data.records import MemorySource
from meta_opt.data.token_counts import TokenCounter, count_tokens
from meta_opt.evaluators.contrastive import evaluate
from meta_opt.evaluators.zero_shot import class_prompts
from meta_opt.losses.contrastive import LOSSES
from meta_opt.models.vision_text import VisionText
from meta_opt.types import Batch, PyTree
from meta_opt.workloads.workload import LossFn, SplitModule


def contrastive_loss(module: SplitModule, loss: str = "clip") -> LossFn:
    """Returns the loss of a batch as a function of the model's arrays.

    Args:
        module: the model; only its structure is used.
        loss: ``clip`` or ``siglip``.
    """

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        outputs = module.merge(params, frozen)(batch)
        return LOSSES[loss](*outputs), {"logit_scale": outputs[2]}

    return loss_fn


def count_texts(texts: np.ndarray, tokenizer: TextTokenizer) -> int:
    """Returns the number of tokens of encoded texts int [..., S], without padding."""
    pad_id = tokenizer.pad_id
    ends_in_pad = pad_id in tokenizer.special_ids
    return count_tokens(texts, pad_id, ends_in_pad=ends_in_pad)


def contrastive_evaluation(
    source: MemorySource,
    tokenizer: TextTokenizer,
    text_length: int,
    loss: str = "clip",
    batch_size: int = 256,
    tokens: TokenCounter | None = None,
) -> Callable[[VisionText], dict[str, float]]:
    """Returns an evaluation on ``source``: loss, retrieval and zero-shot accuracy.

    Args:
        source: data of a split; without classes there is no zero-shot classification.
        tokenizer: tokenizer of the captions.
        text_length: S, number of tokens of a caption.
        loss: ``clip`` or ``siglip``.
        batch_size: number of pairs per batch, which are contrasted in the loss; a
            smaller split is contrasted as a whole. Splits with the same batch size
            share compiled programs.
        tokens: counter of the tokens of captions and of the classes' prompts.
    """
    data = as_arrays(source, tokenizer, text_length)
    prompts = None
    if len(source.class_names) > 1:
        prompts = class_prompts(source.class_names, tokenizer.encode, text_length)
    texts = [data["text"]] if prompts is None else [data["text"], prompts]

    def evaluate_split(model: VisionText) -> dict[str, float]:
        if tokens is not None:
            tokens.add(read=sum(count_texts(x, tokenizer) for x in texts))
        return evaluate(model, data, prompts=prompts, loss=loss, batch_size=batch_size)

    return evaluate_split
