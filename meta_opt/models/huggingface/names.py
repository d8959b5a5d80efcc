"""Mapping of parameters to tensor names in Transformers.

Tables map our names of modules and parameters to theirs; ``{}`` is the index of a
layer.
"""

import re
from collections.abc import Mapping

from meta_opt.models.generative import GenerativeConfig
from meta_opt.models.huggingface.places import Place, convolution, plain, reshaped
from meta_opt.models.towers import VisionConfig

_BLOCK = {
    "attention_norm/scale": "layer_norm1.weight",
    "attention_norm/bias": "layer_norm1.bias",
    "mlp_norm/scale": "layer_norm2.weight",
    "mlp_norm/bias": "layer_norm2.bias",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
}
_DECODER_BLOCK = {
    "attention_norm/scale": "input_layernorm.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
}


def _stack(ours: str, theirs: str, block: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}/layers/{k}": f"{theirs}.layers.{{}}.{v}" for k, v in block.items()}


def _vision(theirs: str) -> dict[str, str]:
    return {
        **_stack("vision", f"{theirs}.encoder", _BLOCK),
        "vision/positions": f"{theirs}.embeddings.position_embedding.weight",
        "vision/patches": f"{theirs}.embeddings.patch_embedding",
        "vision/norm/scale": f"{theirs}.post_layernorm.weight",
        "vision/norm/bias": f"{theirs}.post_layernorm.bias",
    }


_COMMON = {
    **_vision("vision_model"),
    **_stack("text", "text_model.encoder", _BLOCK),
    "text/tokens/embedding": "text_model.embeddings.token_embedding.weight",
    "text/positions": "text_model.embeddings.position_embedding.weight",
    "text/norm/scale": "text_model.final_layer_norm.weight",
    "text/norm/bias": "text_model.final_layer_norm.bias",
    "log_scale": "logit_scale",
}
_CLIP = {
    **_COMMON,
    "vision/class_token": "vision_model.embeddings.class_embedding",
    # The spelling in Transformers.
    "vision/input_norm/scale": "vision_model.pre_layrnorm.weight",
    "vision/input_norm/bias": "vision_model.pre_layrnorm.bias",
    "vision/projection": "visual_projection",
    "text/projection": "text_projection",
}
_SIGLIP = {
    **_COMMON,
    "vision/pool/probe": "vision_model.head.probe",
    "vision/pool/attention/out": "vision_model.head.attention.out_proj",
    "vision/pool/norm/scale": "vision_model.head.layernorm.weight",
    "vision/pool/norm/bias": "vision_model.head.layernorm.bias",
    "vision/pool/mlp/up": "vision_model.head.mlp.fc1",
    "vision/pool/mlp/down": "vision_model.head.mlp.fc2",
    "text/projection": "text_model.head",
    "logit_bias": "logit_bias",
}
_PALIGEMMA = {
    **_vision("vision_tower.vision_model"),
    "vision/projection": "multi_modal_projector.linear",
    "decoder/tokens/embedding": "language_model.model.embed_tokens.weight",
    **_stack("decoder", "language_model.model", _DECODER_BLOCK),
    "decoder/norm/scale": "language_model.model.norm.weight",
}
_SPELLINGS = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
)
_JOINT = ("query", "key", "value")


def paligemma_spelling(name: str) -> str:
    """Normalises a tensor's name to that of PaliGemma's published checkpoints.

    All versions of Transformers read these names, but later ones write others.

    >>> paligemma_spelling("model.vision_tower.post_layernorm.bias")
    'vision_tower.vision_model.post_layernorm.bias'
    """
    for pattern, spelling in _SPELLINGS:
        name = re.sub(pattern, spelling, name)
    return name


def module_names(
    config: VisionConfig, path: str, shape: tuple[int, ...]
) -> tuple[str, ...]:
    """Names of a kernel's linear layers in Transformers.

    Args:
        config: configuration of CLIP or SigLIP.
        path: '/'-joined path of a kernel.
        shape: shape of the kernel; a stacked one has one name per layer.

    Raises:
        ValueError: a kernel that is not a separate linear layer in Transformers, or one
            of PaliGemma, whose layers are named differently in each version.
    """
    if isinstance(config, GenerativeConfig):
        raise ValueError(
            f"{path} is of PaliGemma, whose layers have other names in each version of "
            "Transformers; `meta_opt.models.adapters.save_adapters` writes ours"
        )
    if path.removesuffix("/kernel") not in _table(config):
        raise ValueError(f"{path} is not a linear layer of its own in Transformers")
    place = _place(config, path, shape)
    if place.to_file is not None:
        raise ValueError(f"{path} is a convolution in Transformers")
    return tuple(name.removesuffix(".weight") for name in place.names)


def places(
    config: VisionConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Place]:
    """The location of each parameter; CLIP has none for the logit bias.

    Args:
        config: configuration of CLIP, SigLIP or PaliGemma.
        shapes: shapes of the parameters by path.
    """
    return {
        path: _place(config, path, shape)
        for path, shape in shapes.items()
        if path != "logit_bias" or path in _table(config)
    }


def _table(config: VisionConfig) -> Mapping[str, str]:
    if isinstance(config, GenerativeConfig):
        return _PALIGEMMA
    return _CLIP if config.class_token else _SIGLIP


def _place(config: VisionConfig, path: str, shape: tuple[int, ...]) -> Place:
    table, (parent, _, leaf) = _table(config), path.rpartition("/")
    is_kernel = leaf == "kernel"
    ending = {"kernel": ".weight", "bias": ".bias"}.get(leaf, "")
    if parent.startswith("vision/pool/attention/") and parent.split("/")[-1] in _JOINT:
        return Place(
            (f"vision_model.head.attention.in_proj_{ending.removeprefix('.')}",),
            (3 * shape[-1], *shape[:-1]),
            transposed=is_kernel,
            third=_JOINT.index(parent.split("/")[-1]),
        )
    name = table[path] if path in table else table[parent] + ending
    if path == "vision/patches/kernel":
        return convolution(name, config.patch_size, shape[-1])
    if path == "vision/class_token":
        return reshaped(name, shape, shape[1:])
    if path in ("log_scale", "logit_bias") and not config.class_token:
        return reshaped(name, shape, (1,))
    return plain(name, shape, is_kernel)
