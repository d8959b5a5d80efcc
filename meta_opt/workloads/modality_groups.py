"""Modality groups of the parameters of encoders, fusion and heads."""

import re

import jax

from meta_opt.tree_paths import path_name
from meta_opt.types import PyTree

_OF = "^(encoders|projections|embeddings)"
GROUPS = (
    (rf"{_OF}/image/", "vision"),
    (rf"{_OF}/text/", "text"),
    (rf"{_OF}/audio/", "audio"),
    (rf"{_OF}/video/|^(video_)?temporal/|^masked_frame$", "video"),
    (r"^(fusion|cross_encoder)/", "fusion"),
    (r"^heads/|^logit_scale$", "head"),
)
"""(regular expression, modality group) pairs over '/'-joined paths in
`meta_opt.models.multimodal.Multimodal` and `meta_opt.models.video_text.VideoText`."""


def modality_groups(params: PyTree) -> tuple[tuple[str, str], ...]:
    """Returns the `GROUPS` whose patterns match a parameter; optimizers reject others.

    Args:
        params: pytree of the trained parameters.

    >>> modality_groups({"fusion": {"summary": 0.0}, "logit_scale": 0.0})
    (('^(fusion|cross_encoder)/', 'fusion'), ('^heads/|^logit_scale$', 'head'))
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [path_name(path) for path, _ in leaves]
    return tuple(
        (pattern, group)
        for pattern, group in GROUPS
        if any(re.search(pattern, path) for path in paths)
    )
