"""Adapters alone: in our own format for any model, and as PEFT has them.

Ours: ``adapters.safetensors`` (arrays by '/'-joined path) and ``adapters.json`` (the
configuration and the SHA-256). PEFT's, for CLIP and SigLIP:
``adapter_model.safetensors`` and ``adapter_config.json``, which
``peft.PeftModel.from_pretrained`` reads.
"""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from safetensors import SafetensorError

from meta_opt.models.generative import Generative
from meta_opt.models.huggingface import module_names
from meta_opt.models.lora import LoRAConfig, LoRAParam, add_lora
from meta_opt.models.parameters import by_path, some
from meta_opt.models.vision_text import VisionText
from meta_opt.types import from_config, write_atomic

_FORMAT = 1
_PREFIX = "base_model.model."
_OURS = ("adapters.json", "adapters.safetensors")
_PEFT = ("adapter_config.json", "adapter_model.safetensors")
_LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
# Settings of PEFT's that would change what adapters do, and what they must be.
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layers_to_transform": None,
}


def save_adapters(
    folder: str | os.PathLike, model: nnx.Module, config: LoRAConfig
) -> None:
    """Writes the adapters of a model and nothing else of it.

    Args:
        folder: created if needed.
        model: with adapters.
        config: that they were added with.

    Raises:
        ValueError: a model without adapters.
    """
    folder = Path(folder)
    arrays = {path: np.asarray(p[...]) for path, p in _adapters(model).items()}
    data = safetensors.numpy.save(arrays)
    about = {
        "format": _FORMAT,
        "config": dataclasses.asdict(config),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    _write(folder, _OURS, about, data)


def load_adapters(folder: str | os.PathLike, model: nnx.Module) -> LoRAConfig:
    """Puts adapters that `save_adapters` wrote on a model, in place.

    Returns:
        The configuration that they were made with.

    Raises:
        ValueError: a folder without them, a damaged one, a model that has adapters
            already or is of another architecture.
    """
    folder = Path(folder)
    about, data = _read(folder, _OURS)
    if about.get("format") != _FORMAT:
        raise ValueError(
            f"{folder / _OURS[0]} has format {about.get('format')!r}; this code reads "
            f"{_FORMAT}"
        )
    if (found := hashlib.sha256(data).hexdigest()) != about["sha256"]:
        raise ValueError(
            f"{folder / _OURS[1]} is damaged: its SHA-256 is {found}, {_OURS[0]} says "
            f"{about['sha256']}"
        )
    config = from_config(LoRAConfig, about["config"])
    _put_on(model, config, _parse(folder / _OURS[1], data))
    return config


def save_peft(
    folder: str | os.PathLike,
    model: VisionText | Generative,
    config: LoRAConfig,
    base_model: str = "",
) -> None:
    """Writes the adapters of a CLIP or SigLIP model as PEFT does.

    Args:
        folder: created if needed.
        model: with adapters, on linear layers of the towers.
        config: that they were added with.
        base_model: name or folder of the model underneath, for those who load them.

    Raises:
        ValueError: a model without adapters, a generative one (see
            `meta_opt.models.huggingface.module_names`), or adapters on a layer that is
            no linear layer of its own there (patches; query, key, value of the pooling
            head).
    """
    tensors, modules, params = {}, set(), by_path(model)
    for path, param in _adapters(model).items():
        parent, _, leaf = path.rpartition("/")
        value = np.asarray(param[...])
        stacked = value.ndim == 3
        kernel = f"{parent}/kernel"
        names = module_names(model.config, kernel, params[kernel].shape)
        for name, x in zip(names, value if stacked else value[None], strict=True):
            key = f"{_PREFIX}{name}.{_LEAVES[leaf]}"
            tensors[key] = np.array(x.T, order="C")
            modules.add(name)
    about = {
        **_PLAIN,
        "base_model_name_or_path": base_model or None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.rs_lora,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules),
        "inference_mode": True,
        "task_type": None,
    }
    _write(Path(folder), _PEFT, about, safetensors.numpy.save(tensors))


def load_peft(folder: str | os.PathLike, model: VisionText) -> LoRAConfig:
    """Puts LoRA adapters that PEFT wrote on a CLIP or SigLIP model, in place.

    Returns:
        A configuration that would add the same adapters.

    Raises:
        ValueError: adapters of another kind than plain LoRA, on layers that the model
            does not have, or on some layers of a stack only; they are named.
    """
    folder = Path(folder)
    about, data = _read(folder, _PEFT)
    other = [
        f"{key}={about[key]!r}"
        for key, plain in _PLAIN.items()
        if about.get(key) not in (None, plain)
    ]
    if other:
        raise ValueError(f"{folder} is not plain LoRA: {', '.join(other)}")
    tensors = _parse(folder / _PEFT[1], data)
    arrays: dict[str, np.ndarray] = {}
    kernels = {
        path: param
        for path, param in by_path(model).items()
        if path.endswith("/kernel")
    }
    for path, param in kernels.items():
        try:
            names = module_names(model.config, path, param.shape)
        except ValueError:
            continue
        for leaf, ending in _LEAVES.items():
            keys = [f"{_PREFIX}{name}.{ending}" for name in names]
            there = [key for key in keys if key in tensors]
            if there and len(there) < len(keys):
                lost = [key for key in keys if key not in tensors]
                raise ValueError(
                    f"{folder} adapts a part of the layers: it lacks {some(lost)}"
                )
            if there:
                found = [tensors.pop(key).T for key in keys]
                target = path.removesuffix("kernel") + leaf
                arrays[target] = np.stack(found) if param.ndim == 3 else found[0]
    if tensors:
        raise ValueError(
            f"{folder} adapts layers that the model has not: {some(sorted(tensors))}"
        )
    paths = sorted({path.rpartition("/")[0] for path in arrays})
    config = LoRAConfig(
        pattern=f"^({'|'.join(map(re.escape, paths))})/kernel$",
        rank=about["r"],
        alpha=float(about["lora_alpha"]),
        rs_lora=bool(about.get("use_rslora")),
    )
    _put_on(model, config, arrays)
    return config


def _put_on(
    model: nnx.Module, config: LoRAConfig, arrays: dict[str, np.ndarray]
) -> None:
    """Adds adapters and gives them their values."""
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
        raise ValueError(f"adapters of another model: {some(wrong)}")
    for name, param in params.items():
        param[...] = jnp.asarray(arrays[name], param.dtype)


def _adapters(model: nnx.Module) -> dict[str, nnx.Param]:
    found = by_path(model, LoRAParam)
    if not found:
        raise ValueError("the model has no adapters to save")
    return found


def _write(
    folder: Path, names: tuple[str, str], about: dict[str, Any], data: bytes
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomic(folder / names[1]) as temporary:
        temporary.write_bytes(data)
    with write_atomic(folder / names[0]) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _read(folder: Path, names: tuple[str, str]) -> tuple[dict[str, Any], bytes]:
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: no adapters of this format")
    about = json.loads((folder / names[0]).read_text(encoding="utf-8"))
    return about, (folder / names[1]).read_bytes()


def _parse(path: Path, data: bytes) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from None
