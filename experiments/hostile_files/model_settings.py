"""Settings of models and tokenizers in folders of other libraries."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.hostile_files import samples
from experiments.hostile_files.format import Files, Format


def clip_settings() -> dict[str, Any]:
    """Returns the ``config.json`` of a small CLIP model."""
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    text = {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 19}
    vision = {"image_size": 8, "patch_size": 4, "num_channels": 3}
    return {
        "model_type": "clip",
        "text_config": {**tower, **text},
        "vision_config": {**tower, **vision},
        "projection_dim": 16,
    }


def _processor() -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 8},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 8, "width": 8},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }


def _folder_settings() -> Files:
    return {
        "config.json": samples.dumped(clip_settings()),
        "preprocessor_config.json": samples.dumped(_processor()),
    }


def _read_settings(folder: Path) -> Any:
    from meta_opt.data.preprocessing.image_fit import read_image_fit
    from meta_opt.models import huggingface

    return huggingface.read_config(folder), read_image_fit(folder, 8, "crop")


def _paligemma_settings() -> Files:
    text = {
        "model_type": "gemma",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    vision = {
        **clip_settings()["vision_config"],
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
    }
    about = {
        "model_type": "paligemma",
        "text_config": text,
        "vision_config": vision,
        "image_token_index": 31,
    }
    return {"config.json": samples.dumped(about)}


def _read_paligemma(folder: Path) -> Any:
    from meta_opt.models.huggingface.folders import read_generative_config

    return read_generative_config(folder)


def _convnet_settings() -> Files:
    about = {
        "model_type": "resnet",
        "depths": [1, 1],
        "hidden_sizes": [16, 32],
        "embedding_size": 8,
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "num_channels": 3,
    }
    return {"config.json": samples.dumped(about)}


def _timm_settings() -> Files:
    about = {
        "architecture": "convnext_tiny",
        "model_args": {"depths": [1, 1], "dims": [8, 16], "drop_path_rate": 0.1},
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    }
    return {"config.json": samples.dumped(about)}


def _read_convnet(folder: Path) -> Any:
    from meta_opt.models.convnets.folders import read_config

    return read_config(folder)


def _tokenizer() -> Files:
    from meta_opt.data.bundled import BUNDLED

    # The bundled file has merges, normalizers, pre-tokenizers and a decoder.
    value = json.loads((BUNDLED / "tokenizer.json").read_bytes())
    vocabulary = value["model"]["vocab"]
    kept = {token: i for token, i in vocabulary.items() if i < 120}
    value["model"]["vocab"] = kept
    value["model"]["merges"] = [
        pair
        for pair in value["model"]["merges"]
        if all(p in kept for p in _pair(pair)) and "".join(_pair(pair)) in kept
    ]
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "[PAD]"}
    return {
        "tokenizer.json": samples.dumped(value),
        "tokenizer_config.json": samples.dumped(settings),
    }


def _pair(merge: Any) -> Any:
    return merge.split(" ") if isinstance(merge, str) else merge


def _read_tokenizer(folder: Path) -> Any:
    from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
    from meta_opt.data.preprocessing.tokenizer import load_tokenizer

    rows = FolderTokenizer(folder, 0).encode(["a red cat!", "\0é😀"], 8)
    load_tokenizer.cache_clear()
    return rows, load_tokenizer(folder / "tokenizer.json").encode(["a cat"], 8)


FORMATS: Mapping[str, Format] = {
    "clip_settings": Format(
        _folder_settings,
        _read_settings,
        {"config.json": "json", "preprocessor_config.json": "json"},
    ),
    "paligemma_settings": Format(
        _paligemma_settings, _read_paligemma, {"config.json": "json"}
    ),
    "resnet_settings": Format(
        _convnet_settings, _read_convnet, {"config.json": "json"}
    ),
    "timm_settings": Format(_timm_settings, _read_convnet, {"config.json": "json"}),
    "tokenizer_json": Format(
        _tokenizer,
        _read_tokenizer,
        {"tokenizer.json": "json", "tokenizer_config.json": "json"},
    ),
}
