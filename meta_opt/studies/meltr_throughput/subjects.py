"""Models with several losses for measuring throughput, with synthetic data.

There are models of clips with texts in three sizes that run on a CPU, and two large
image-text models that are only compiled. No weights or data are read, because the cost
of a step does not depend on their values.
"""

from meta_opt.studies.meltr_throughput.clips import CLIP_SIZES, clips
from meta_opt.studies.meltr_throughput.large import (
    CAPTION_LOSSES,
    IMAGE_TEXT_LOSSES,
    captioning,
    image_text,
)
from meta_opt.studies.meltr_throughput.subject import Subject
from meta_opt.types import check_name
from meta_opt.workloads.video_text_losses import losses_of

LARGE = ("So400m/14", "3B/14")
"""Image-text models that are only compiled, with the architectures of SigLIP and
PaliGemma (`meta_opt.models.vision_text`, `meta_opt.models.generative`)."""

MODELS = (*CLIP_SIZES, *LARGE)
"""Names of models for `make_subject`."""


def loss_names(model: str) -> tuple[str, ...]:
    """Returns the names of all losses of a model, the primary one first.

    Models of clips have UniVL's losses for retrieval. The first losses of ``So400m/14``
    share one forward pass; the last one runs the text tower again on captions with
    masked tokens. The second loss of ``3B/14`` runs the decoder again on answers with
    masked tokens; the vision tower runs once.

    Raises:
        ValueError: an unknown model.

    >>> loss_names("So400m/14")
    ('siglip', 'clip', 'max_margin', 'masked_siglip')
    """
    check_name("model", model, MODELS)
    if model == "So400m/14":
        return tuple(IMAGE_TEXT_LOSSES)
    if model == "3B/14":
        return CAPTION_LOSSES
    names, primary = losses_of("univl", "retrieval")
    return (primary, *(name for name in names if name != primary))


def make_subject(model: str, num_losses: int, trainable: str = "all") -> Subject:
    """Returns a model with its first T losses.

    Args:
        model: one of `MODELS`.
        num_losses: T.
        trainable: ``all``, or ``lora``: adapters of rank 8 on the encoders' kernels; in
            models of clips fusion and heads train too.

    Raises:
        ValueError: an unknown name, or more losses than the model has.
    """
    every = loss_names(model)
    check_name("trainable", trainable, ("all", "lora"))
    if not 1 <= num_losses <= len(every):
        raise ValueError(
            f"num_losses={num_losses}: {model} has {len(every)} losses, "
            f"{', '.join(every)}; use 1 to {len(every)}"
        )
    names = every[:num_losses]
    if model == "So400m/14":
        return image_text(names, trainable)
    if model == "3B/14":
        return captioning(names, trainable)
    return clips(CLIP_SIZES[model], names, trainable)
