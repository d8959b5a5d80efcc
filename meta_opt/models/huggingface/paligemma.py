"""``config.json`` of PaliGemma 1 (PaliGemma 2 has a different decoder)."""

from collections.abc import Mapping
from typing import Any

from meta_opt.models.decoder import DecoderConfig
from meta_opt.models.generative import GenerativeConfig
from meta_opt.models.huggingface.settings import (
    IMAGES,
    OF_SIGLIP,
    lost,
    parse_activation,
    parse_tower,
    section,
    write_activation,
    write_tower,
)

# Defaults that Transformers omits from config.json.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "text_config": {
        "model_type": "gemma",
        "vocab_size": 256_000,
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
    },
    "vision_config": {
        **IMAGES,
        **OF_SIGLIP,
        "model_type": "siglip_vision_model",
        "patch_size": 16,
    },
}
_LEGACY_ACTIVATION = "gelu"
"""Value of Gemma's ``hidden_act`` that stands for the tanh approximation."""


def parse_config(given: Mapping[str, Any]) -> GenerativeConfig:
    """Parses an architecture; images must have three channels.

    Args:
        given: contents of ``config.json``.

    Raises:
        ValueError: not PaliGemma, or one with parts that
            `meta_opt.models.generative.Generative` does not support.
    """
    kind = given.get("model_type")
    if kind in ("clip", "siglip"):
        raise ValueError(f"it is of a model_type {kind!r}, which `load` reads")
    if kind != "paligemma":
        raise ValueError(f"it is of a model_type {kind!r}; paligemma can be read")
    if absent := [part for part in _DEFAULTS if not given.get(part)]:
        raise ValueError(f"it has no {' and no '.join(absent)}")
    text, vision = (section(given, k, default) for k, default in _DEFAULTS.items())
    width = text["hidden_size"]
    name = "rope_parameters" if text.get("rope_parameters") else "rope_scaling"
    rope = section(text, name, {})
    wanted = {
        "text_config.model_type": (text["model_type"], "gemma"),
        "vision_config.model_type": (vision["model_type"], "siglip_vision_model"),
        "vision_config.num_channels": (vision["num_channels"], 3),
        "projection_dim": (given.get("projection_dim", width), width),
        "tie_word_embeddings": (given.get("tie_word_embeddings", True), True),
        "attention_bias": (text.get("attention_bias", False), False),
        "rope_type": (rope.get("rope_type", "default"), "default"),
    }
    for name, (value, only) in wanted.items():
        if value != only:
            raise ValueError(f"{name}={value!r} must be {only!r}")
    activation = text["hidden_act"]
    if activation == _LEGACY_ACTIVATION:
        activation = "gelu_pytorch_tanh"

    def token(name: str, default: int) -> int:
        found = given.get(name, text.get(name))
        if found is None:
            return default
        if not isinstance(found, int):
            raise ValueError(f"{name}={found!r} must be an integer")
        return found

    return GenerativeConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision=parse_tower(vision, pooling="none", projection="linear_bias"),
        image_mean=(0.5,) * 3,
        image_std=(0.5,) * 3,
        decoder=DecoderConfig(
            vocab_size=text["vocab_size"],
            width=width,
            depth=text["num_hidden_layers"],
            heads=text["num_attention_heads"],
            key_value_heads=text["num_key_value_heads"],
            head_width=text["head_dim"],
            mlp_width=text["intermediate_size"],
            activation=parse_activation(activation),
            norm_epsilon=text["rms_norm_eps"],
            rope_base=rope.get("rope_theta", text.get("rope_theta", 10_000.0)),
        ),
        pad_id=token("pad_token_id", 0),
        end_id=token("eos_token_id", 1),
        image_id=token("image_token_index", -1),
    )


def write_config(config: GenerativeConfig) -> dict[str, Any]:
    """Returns the contents of ``config.json`` for an architecture.

    Raises:
        ValueError: if it is not PaliGemma's.
    """
    if config.tower != "vit":
        raise ValueError(
            f"PaliGemma has no image tower {config.tower!r}; such a model is exported "
            "as 'model' or, of adapters, 'adapters'"
        )
    decoder = config.decoder
    image = config.image_id if config.image_id >= 0 else decoder.vocab_size
    settings: dict[str, Any] = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "text_config": {
            "model_type": "gemma",
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.width,
            "intermediate_size": decoder.mlp_width,
            "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.key_value_heads,
            "head_dim": decoder.head_width,
            "hidden_act": write_activation(decoder.activation),
            "rms_norm_eps": decoder.norm_epsilon,
            "rope_theta": decoder.rope_base,
            "num_image_tokens": config.grid**2,
        },
        "vision_config": {
            **write_tower(config.vision, "siglip_vision_model"),
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "num_channels": 3,
            "num_image_tokens": config.grid**2,
            "projection_dim": decoder.width,
            "vision_use_head": False,
        },
        "projection_dim": decoder.width,
        "hidden_size": decoder.width,
        "image_token_index": image,
        "pad_token_id": config.pad_id,
        "eos_token_id": config.end_id,
        "tie_word_embeddings": True,
        "dtype": config.param_dtype,
    }
    if why := lost(config, lambda: parse_config(settings), ("image_id",)):
        raise ValueError(f"this architecture is not PaliGemma's: {why}")
    return settings
