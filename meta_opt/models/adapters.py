"""Saving and loading of adapters, in our own format for any model and in PEFT's.

Our format: ``adapters.safetensors`` (arrays by '/'-joined path) and ``adapters.json``
(the configuration and the SHA-256). PEFT's format, for CLIP and SigLIP:
``adapter_model.safetensors`` and ``adapter_config.json``, which
``peft.PeftModel.from_pretrained`` reads.
"""

import dataclasses
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.error_messages import first_few
from meta_opt.models.generative import Generative
from meta_opt.models.huggingface import module_names
from meta_opt.models.lora import LoRAConfig, LoRAParam, add_lora
from meta_opt.models.parameters import by_path
from meta_opt.models.peft import LEAVES, PREFIX, merge_layers, parse_config
from meta_opt.models.settings import check_pattern
from meta_opt.models.vision_text import VisionText
from meta_opt.tensor_files import read_tensors, write_tensors
from meta_opt.text_files import read_json, read_versioned, write_json
from meta_opt.types import from_config

_FORMAT = 1
_OURS = ("adapters.json", "adapters.safetensors")
_PEFT = ("adapter_config.json", "adapter_model.safetensors")


def save_adapters(
    folder: str | os.PathLike, model: nnx.Module, config: LoRAConfig
) -> None:
    """Saves the adapters of a model, without its other parameters.

    Args:
        folder: created if needed.
        model: with adapters.
        config: that they were added with.

    Raises:
        ValueError: a model without adapters.
    """
    folder = Path(folder)
    arrays = {path: np.asarray(p[...]) for path, p in _adapters(model).items()}
    about = {
        "format": _FORMAT,
        "config": dataclasses.asdict(config),
        "sha256": write_tensors(folder / _OURS[1], arrays),
    }
    write_json(folder / _OURS[0], about)


def load_adapters(folder: str | os.PathLike, model: nnx.Module) -> LoRAConfig:
    """Loads adapters saved by `save_adapters` into a model, in place.

    Returns:
        The configuration of the adapters.

    Raises:
        ValueError: a missing or damaged file, or a model that already has adapters or
            has another architecture.
    """
    folder = Path(folder)
    _check_files(folder, _OURS)
    about = read_versioned(folder / _OURS[0], _FORMAT)
    tensors = read_tensors(folder / _OURS[1], str(about.get("sha256")), _OURS[0])
    try:
        config = from_config(LoRAConfig, about.get("config"), "config")
        check_pattern("config.pattern", config.pattern)
    except ValueError as error:
        raise ValueError(f"{folder / _OURS[0]}: {error}") from None
    try:
        _put_on(model, config, tensors)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return config


def save_peft(
    folder: str | os.PathLike,
    model: VisionText | Generative,
    config: LoRAConfig,
    base_model: str = "",
) -> None:
    """Saves the adapters of a CLIP or SigLIP model in PEFT's format.

    Args:
        folder: created if needed.
        model: a model with adapters on linear layers of the towers.
        config: that they were added with.
        base_model: name or folder of the base model, which is recorded in the file.

    Raises:
        ValueError: a model without adapters, a generative one (see
            `meta_opt.models.huggingface.module_names`), or adapters on a layer that is
            not a separate linear layer in Transformers (patches; query, key, value of
            the pooling head).
    """
    tensors, modules, params = {}, set(), by_path(model)
    for path, param in _adapters(model).items():
        parent, _, leaf = path.rpartition("/")
        value = np.asarray(param[...])
        stacked = value.ndim == 3
        kernel = f"{parent}/kernel"
        names = module_names(model.config, kernel, params[kernel].shape)
        for name, x in zip(names, value if stacked else value[None], strict=True):
            key = f"{PREFIX}{name}.{LEAVES[leaf]}"
            tensors[key] = np.array(x.T, order="C")
            modules.add(name)
    about = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model or None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.rs_lora,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(modules),
        "inference_mode": True,
        "task_type": None,
    }
    folder = Path(folder)
    write_tensors(folder / _PEFT[1], tensors)
    write_json(folder / _PEFT[0], about)


def load_peft(folder: str | os.PathLike, model: VisionText) -> LoRAConfig:
    """Loads LoRA adapters in PEFT's format into a CLIP or SigLIP model, in place.

    The model computes the same function as in PEFT. There, ``init_lora_weights`` of
    ``pissa`` and ``olora`` also modifies the kernels; here the kernels are unchanged,
    and what was subtracted from them becomes a second half of the adapters, whose rank
    is doubled. Per-layer scales (``alpha_pattern``) are folded into B, and layers of a
    stack with a lower rank, or without adapters, are padded with zeros.

    Args:
        folder: folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: a model with floating-point kernels.

    Returns:
        A configuration that would add the same adapters.

    Raises:
        ValueError: an unsupported setting, adapters on layers that the model does not
            have, or missing adapters; the message names them.
    """
    folder = Path(folder)
    _check_files(folder, _PEFT)
    about = read_json(folder / _PEFT[0])
    try:
        config = parse_config(about)
    except ValueError as error:
        raise ValueError(f"{folder / _PEFT[0]}: {error}") from None
    if isinstance(model, Generative):
        raise ValueError(
            f"{folder} has adapters as PEFT writes them, which are read for CLIP and "
            "SigLIP only; merge them in PEFT (merge_and_unload) and save the model"
        )
    params = by_path(model)
    layers = {}
    for path, param in params.items():
        try:
            names = module_names(model.config, path, param.shape)
        except ValueError:
            continue
        layers[path] = (names, param[...])
        if config.start and f"{path}_scale" in params:
            raise ValueError(
                f"init_lora_weights={config.start!r} of {folder} needs the kernels as "
                "they were, and the model's are in int8; put the adapters on before"
            )
    try:
        lora, arrays = merge_layers(config, layers, read_tensors(folder / _PEFT[1]))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    _put_on(model, lora, arrays)
    return lora


def _put_on(
    model: nnx.Module, config: LoRAConfig, arrays: dict[str, np.ndarray]
) -> None:
    """Adds adapters and sets their values."""
    if by_path(model, LoRAParam):
        raise ValueError("the model has adapters already; merge them first")
    add_lora(model, config, rngs=nnx.Rngs(0))
    params = by_path(model, LoRAParam)
    wrong = [
        f"{name} {list(arrays[name].shape) if name in arrays else 'missing'}"
        for name, param in params.items()
        if name not in arrays or arrays[name].shape != param.shape
    ]
    if wrong := wrong + sorted(arrays.keys() - params.keys()):
        raise ValueError(f"adapters of another model: {first_few(wrong)}")
    for name, param in params.items():
        param[...] = jnp.asarray(arrays[name], param.dtype)


def _adapters(model: nnx.Module) -> dict[str, nnx.Param]:
    found = by_path(model, LoRAParam)
    if not found:
        raise ValueError("the model has no adapters to save")
    return found


def _check_files(folder: Path, names: tuple[str, str]) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: no adapters of this format")
