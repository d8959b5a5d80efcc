"""The accuracy of each modality of a multimodal classifier alone, with its loss."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from meta_opt.losses.balancing import modality_strengths
from meta_opt.models.multimodal import Multimodal
from meta_opt.types import PyTree
from meta_opt.workloads.modality_dropout import drop_modalities
from meta_opt.workloads.multimodal_inputs import Inputs
from meta_opt.workloads.multimodal_model import classification_loss
from meta_opt.workloads.workload import SplitModule, Unimodal


def unimodal_of(
    module: SplitModule, inputs: Inputs, dropout: float = 0.0
) -> Unimodal | None:
    """Predictions from each modality alone, for a classification from several.

    A single modality's prediction is the fusion of its own features, which equals
    masking all others (`Multimodal.classify_encoded`). The encoders run once, for the
    loss; this adds M forward passes through the fusion, each with one modality's
    features.

    Args:
        module: only its structure is used.
        inputs: kind and modalities of the task.
        dropout: see `MultimodalConfig.modality_dropout`; strengths are computed without
            dropout.

    Returns:
        None for other tasks and for a single modality.
    """
    names = inputs.modalities
    if inputs.kind != "classify" or len(names) < 2:
        return None

    def fn(
        params: PyTree, frozen: PyTree, batch: dict[str, Any], rng: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, dict[str, jax.Array]]]:
        model: Multimodal = module.merge(params, frozen)
        encoded = model.encode(batch)
        seen = drop_modalities(batch, names, dropout, rng) if dropout else batch
        labels = batch["label"]
        loss, error = classification_loss(model.classify_encoded(encoded, seen), labels)
        fixed = jax.lax.stop_gradient(encoded)
        alone = [model.classify_encoded({m: fixed[m]}, batch) for m in names]
        everywhere = jnp.ones(len(labels), bool)
        present = [jnp.asarray(batch.get(f"{m}_present", everywhere)) for m in names]
        strengths = modality_strengths(alone, labels, present)
        examples = jnp.stack([jnp.sum(x, dtype=jnp.float32) for x in present])
        return loss, (jax.lax.stop_gradient(strengths), examples, {"error": error})

    return Unimodal(names, own_parameters(names, inputs.encoders), fn)


def own_parameters(
    modalities: Sequence[str], encoders: Collection[str]
) -> tuple[str, ...]:
    """A pattern of the parameters that only one modality passes through, for each.

    An image encoder that encodes video frames too belongs to neither modality.

    Args:
        modalities: of the model.
        encoders: modalities with an encoder; video without one uses that of images.

    >>> own_parameters(("image", "text"), ("image", "text"))[1]
    '^(projections/text/|encoders/text/)'
    >>> own_parameters(("image", "video"), ("image",))
    ('^(projections/image/)', '^(projections/video/|video_temporal/)')
    """
    used = [m if m in encoders else "image" for m in modalities]
    found = []
    for modality, encoder in zip(modalities, used, strict=True):
        parts = [f"projections/{modality}/"]
        if used.count(encoder) == 1:
            parts.append(f"encoders/{encoder}/")
        if modality == "video":
            parts.append("video_temporal/")
        found.append(f"^({'|'.join(parts)})")
    return tuple(found)
