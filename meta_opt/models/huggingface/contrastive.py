"""``config.json`` of CLIP and SigLIP."""

from collections.abc import Mapping
from typing import Any

from meta_opt.models.huggingface.settings import (
    BASE,
    IMAGES,
    OF_CLIP,
    OF_SIGLIP,
    lost,
    parse_tower,
    section,
    write_tower,
)
from meta_opt.models.settings import is_count
from meta_opt.models.vision_text import CLIP_MEAN, CLIP_STD, VisionTextConfig
from meta_opt.types import near_match

_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "text_config": {
            **BASE,
            **OF_CLIP,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_attention_heads": 8,
            "vocab_size": 49408,
            "max_position_embeddings": 77,
            "eos_token_id": 49407,
        },
        "vision_config": {**IMAGES, **OF_CLIP, "patch_size": 32},
    },
    "siglip": {
        "text_config": {
            **BASE,
            **OF_SIGLIP,
            "vocab_size": 32000,
            "max_position_embeddings": 64,
            "pad_token_id": 1,
        },
        "vision_config": {**IMAGES, **OF_SIGLIP, "patch_size": 16},
    },
}
_LEGACY_END = 2
"""CLIP's ``eos_token_id`` that stands for the largest id as the end token."""


def parse_config(given: Mapping[str, Any]) -> VisionTextConfig:
    """Parses an architecture; images must have three channels.

    Args:
        given: contents of ``config.json``.

    Raises:
        ValueError: neither CLIP nor SigLIP, or one with parts that
            `meta_opt.models.vision_text.VisionText` does not support.
    """
    kind = given.get("model_type")
    if kind == "paligemma":
        raise ValueError(
            f"it is of a model_type {kind!r}, which `load_generative` reads"
        )
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise ValueError(
            f"it is of a model_type {kind!r}"
            f"{near_match(str(kind), _DEFAULTS)}; clip and siglip can be read"
        )
    text, vision = (
        section(given, part, _DEFAULTS[kind][part])
        for part in ("text_config", "vision_config")
    )
    if vision["num_channels"] != 3 or not vision.get("vision_use_head", True):
        raise ValueError("images need 3 channels and the model a pooling head")
    clip = kind == "clip"
    towers = {
        "vision": parse_tower(
            vision,
            pooling="first" if clip else "attention",
            projection="linear" if clip else "none",
            input_norm=clip,
        ),
        "text": parse_tower(
            text,
            pooling="end" if clip else "last",
            projection="linear" if clip else "linear_bias",
            causal=clip,
        ),
    }
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else ((0.5,) * 3, (0.5,) * 3)
    end = text.get("eos_token_id", -1)
    vocabulary = text["vocab_size"]
    if clip:
        # Validated before it is used in a computation.
        if not is_count(vocabulary):
            raise ValueError(f"vocab_size={vocabulary!r} must be an integer")
        end = vocabulary - 1 if end == _LEGACY_END else end
        embed_dim = given.get("projection_dim", 512)
    else:
        embed_dim = vision["hidden_size"]
        if text.get("projection_size", embed_dim) not in (None, embed_dim):
            raise ValueError(
                f"projection_size={text['projection_size']} of the text is "
                f"not the width {embed_dim} of the vision tower"
            )
    return VisionTextConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision=towers["vision"],
        text=towers["text"],
        class_token=clip,
        patch_bias=not clip,
        image_mean=mean,
        image_std=std,
        vocab_size=vocabulary,
        text_length=text["max_position_embeddings"],
        pad_id=end if clip else text["pad_token_id"],
        reads_padding=True,
        end_id=end if clip else -1,
        embed_dim=embed_dim,
    )


def write_config(config: VisionTextConfig) -> dict[str, Any]:
    """Returns the contents of ``config.json`` for an architecture.

    Raises:
        ValueError: if it is neither CLIP's nor SigLIP's.
    """
    clip = config.class_token
    kind = "clip" if clip else "siglip"
    text = {
        **write_tower(config.text, f"{kind}_text_model"),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.text_length,
        "pad_token_id": config.pad_id,
    }
    text |= (
        {"eos_token_id": config.end_id, "projection_dim": config.embed_dim}
        if clip
        else {"projection_size": config.embed_dim}
    )
    vision = {
        **write_tower(config.vision, f"{kind}_vision_model"),
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
    }
    settings: dict[str, Any] = {
        "architectures": ["CLIPModel" if clip else "SiglipModel"],
        "model_type": kind,
        "text_config": text,
        "vision_config": vision,
        "dtype": config.param_dtype,
    }
    if clip:
        settings |= {"projection_dim": config.embed_dim}
    free = ("init_scale", "init_bias", "pad_id")
    if why := lost(config, lambda: parse_config(settings), free):
        raise ValueError(
            f"this architecture is neither CLIP's nor SigLIP's: {why}; "
            "`meta_opt.models.pretrained.save` writes any"
        )
    return settings
