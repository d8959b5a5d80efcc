"""Image-text retrieval: loss and evaluation of a model with two towers."""

from collections.abc import Callable

import jax

from meta_opt.data.pipeline import as_arrays
from meta_opt.data.preprocessing.tokenizer import TextTokenizer
from meta_opt.data.records import MemorySource
from meta_opt.evaluators.contrastive import evaluate
from meta_opt.evaluators.zero_shot import class_prompts
from meta_opt.losses.contrastive import LOSSES
from meta_opt.models.vision_text import VisionText
from meta_opt.types import Batch, PyTree
from meta_opt.workloads.workload import LossFn, SplitModule


def contrastive_loss(module: SplitModule, loss: str = "clip") -> LossFn:
    """The loss of a batch as a function of the model's arrays.

    Args:
        module: only its structure is used.
        loss: ``clip`` or ``siglip``.
    """

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        outputs = module.merge(params, frozen)(batch)
        return LOSSES[loss](*outputs), {"logit_scale": outputs[2]}

    return loss_fn


def contrastive_evaluation(
    source: MemorySource,
    tokenizer: TextTokenizer,
    text_length: int,
    loss: str = "clip",
    batch_size: int = 256,
) -> Callable[[VisionText], dict[str, float]]:
    """The evaluation on ``source``: loss, retrieval and zero-shot classification.

    Args:
        source: a split; without classes there is no zero-shot classification.
        tokenizer: of the captions.
        text_length: S, tokens of a caption.
        loss: ``clip`` or ``siglip``.
        batch_size: examples at a time, and pairs contrasted in the loss. A split that
            is not larger is contrasted as a whole. Splits with the same batch size
            share compiled programs.
    """
    data = as_arrays(source, tokenizer, text_length)
    prompts = None
    if len(source.class_names) > 1:
        prompts = class_prompts(source.class_names, tokenizer.encode, text_length)
    return lambda model: evaluate(
        model, data, prompts=prompts, loss=loss, batch_size=batch_size
    )
