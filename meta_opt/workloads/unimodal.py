"""Predictions of a multimodal classifier from single modalities, and their losses."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from meta_opt.losses.balancing import modality_strengths
from meta_opt.losses.classification import classification_loss
from meta_opt.losses.masked import masked_mean
from meta_opt.models.fusion import Tokens
from meta_opt.models.multimodal import Multimodal
from meta_opt.types import PyTree
from meta_opt.workloads.modality_dropout import drop_modalities
from meta_opt.workloads.multimodal_inputs import Inputs
from meta_opt.workloads.workload import Losses, SplitModule, Unimodal

_JOINT = "joint"
"""The task's own loss among those of its modalities."""


def unimodal_of(
    module: SplitModule, inputs: Inputs, dropout: float = 0.0
) -> Unimodal | None:
    """Returns predictions from each modality alone, for multimodal classification.

    A unimodal prediction fuses the features of that modality only, which equals masking
    all others (`Multimodal.classify_encoded`). The encoders run once, for the loss; the
    predictions add M forward passes through the fusion.

    Args:
        module: the model; only its structure is used.
        inputs: inputs, for the kind and the modalities of the task.
        dropout: see `MultimodalConfig.modality_dropout`; strengths are computed without
            dropout.

    Returns:
        None for other tasks and for a single modality.
    """
    names = inputs.modalities
    if not _several(inputs):
        return None

    def fn(
        params: PyTree, frozen: PyTree, batch: dict[str, Any], rng: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, dict[str, jax.Array]]]:
        model: Multimodal = module.merge(params, frozen)
        encoded, loss, error = _joint(model, names, batch, dropout, rng)
        labels = batch["label"]
        fixed = jax.lax.stop_gradient(encoded)
        alone = [model.classify_encoded({m: fixed[m]}, batch) for m in names]
        present = _present(batch, names)
        strengths = modality_strengths(alone, labels, present)
        examples = jnp.stack([jnp.sum(x, dtype=jnp.float32) for x in present])
        return loss, (jax.lax.stop_gradient(strengths), examples, {"error": error})

    return Unimodal(names, own_parameters(names, inputs.encoders), fn)


def modality_losses(
    module: SplitModule, inputs: Inputs, dropout: float = 0.0
) -> Losses | None:
    """Returns the losses of all modalities jointly and of each modality alone.

    For multimodal classification in runs that combine several losses: with equal
    weights the model is also trained to predict from each modality alone, so that none
    stops learning while another suffices (Wang et al. 2020, arXiv:1905.12681, who use
    separate heads). All losses share encoders, fusion and head; the encoders run once.
    A modality's loss is the mean cross-entropy over the examples that have it, and NaN
    in a batch without any, which such runs mask.

    Args:
        module: the model; only its structure is used.
        inputs: inputs, for the kind and the modalities of the task.
        dropout: see `MultimodalConfig.modality_dropout`; applies to the joint loss.

    Returns:
        ``joint``, the primary loss, and one loss by the name of each modality; None for
        other tasks and for a single modality.
    """
    names = inputs.modalities
    if not _several(inputs):
        return None

    def fn(
        params: PyTree, frozen: PyTree, batch: dict[str, Any], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        model: Multimodal = module.merge(params, frozen)
        encoded, joint, error = _joint(model, names, batch, dropout, rng)
        labels, losses = batch["label"], [joint]
        for name, present in zip(names, _present(batch, names), strict=True):
            logits = model.classify_encoded({name: encoded[name]}, batch)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            mean = masked_mean(nats, present)
            losses.append(jnp.where(jnp.any(present), mean, jnp.nan))
        return jnp.stack(losses), {"error": error}

    return Losses((_JOINT, *names), _JOINT, fn)


def _joint(
    model: Multimodal,
    modalities: Sequence[str],
    batch: dict[str, Any],
    dropout: float,
    rng: jax.Array,
) -> tuple[Mapping[str, Tokens], jax.Array, jax.Array]:
    """Returns features by modality, and loss and error rate of the joint prediction."""
    encoded = model.encode(batch)
    seen = drop_modalities(batch, modalities, dropout, rng) if dropout else batch
    logits = model.classify_encoded(encoded, seen)
    return encoded, *classification_loss(logits, batch["label"])


def _several(inputs: Inputs) -> bool:
    return inputs.kind == "classify" and len(inputs.modalities) > 1


def _present(batch: dict[str, Any], modalities: Sequence[str]) -> list[jax.Array]:
    """Returns for each modality which examples have it, bool [B]."""
    everywhere = jnp.ones(len(batch["label"]), bool)
    return [jnp.asarray(batch.get(f"{m}_present", everywhere)) for m in modalities]


def own_parameters(
    modalities: Sequence[str], encoders: Collection[str]
) -> tuple[str, ...]:
    """Returns a pattern of the parameters that only this modality uses, for each.

    An image encoder that also encodes video frames belongs to neither modality.

    Args:
        modalities: modalities of the model.
        encoders: modalities with an encoder; video without one uses the image encoder.

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
