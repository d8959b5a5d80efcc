"""How well each modality of a multimodal classifier does alone, beside its loss."""

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
    """What each modality alone says, of a classification from several; else None.

    A modality alone is the fusion of its own features, which equals masking all others
    (`Multimodal.classify_encoded`). The encoders run once, for the loss: what this adds
    to a step is M forward passes through the fusion, each of one modality's features.

    Args:
        module: its structure is used, its arrays are not.
        inputs: kind and modalities of the task.
        dropout: see `MultimodalConfig.modality_dropout`; strengths are those of all
            that the examples have.
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
    """Of each modality, a pattern of the parameters that it alone passes through.

    An encoder of images that sees the frames of clips too is neither's own.

    Args:
        modalities: of the model.
        encoders: modalities that have one; clips without go by that of images.

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
