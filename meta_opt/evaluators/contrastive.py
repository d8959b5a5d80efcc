"""Metrics of a contrastive vision-text model on one split."""

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.evaluators.encoding import encode_images, encode_texts
from meta_opt.evaluators.retrieval import evaluate_retrieval
from meta_opt.evaluators.zero_shot import class_embeddings, evaluate_zero_shot
from meta_opt.losses.contrastive import LOSSES
from meta_opt.models.vision_text import VisionText
from meta_opt.parallel.placement import to_host
from meta_opt.types import Batch


def evaluate(
    model: VisionText,
    data: Batch,
    *,
    prompts: np.ndarray | None = None,
    loss: str = "clip",
    batch_size: int = 128,
) -> dict[str, float]:
    """Evaluates loss, retrieval and, with prompts, zero-shot classification.

    Args:
        model: the model, for example `nnx.merge(graphdef, params)`.
        data: arrays of a whole split: ``image`` [N, h, w, 3], ``text`` int [N, S] and,
            for zero-shot classification, ``label`` int [N].
        prompts: int [K, M, S], M prompts of each class (`zero_shot.class_prompts`).
        loss: ``clip`` or ``siglip``.
        batch_size: number of pairs that are encoded and contrasted together. The loss
            is the mean over consecutive batches; an incomplete last batch is only
            counted if it is the only one, since the loss grows with the batch size.

    Returns:
        ``loss``, the metrics of `retrieval_metrics`, ``zero_shot_accuracy`` and
        ``zero_shot_macro_f1``.
    """
    image_z = encode_images(model, data["image"], batch_size)
    text_z = encode_texts(model, data["text"], batch_size)
    size = min(batch_size, len(image_z))
    full = len(image_z) // size * size
    contrast = jax.vmap(LOSSES[loss], in_axes=(0, 0, None, None))
    losses = contrast(
        jnp.reshape(image_z[:full], (-1, size, image_z.shape[-1])),
        jnp.reshape(text_z[:full], (-1, size, text_z.shape[-1])),
        to_host(model.scale()),
        to_host(model.logit_bias[...]),
    )
    metrics = {"loss": float(losses.mean())}
    metrics |= evaluate_retrieval(image_z, text_z, data["text"])
    if prompts is not None:
        class_z = class_embeddings(model, prompts, batch_size)
        metrics |= evaluate_zero_shot(image_z, class_z, data["label"])
    return metrics
