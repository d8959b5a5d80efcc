"""Exports of multimodal models: files of arrays and of settings.

``PATH.safetensors`` has every array of the model by its '/'-joined path, with adapters
merged; ``PATH.json`` has the settings of inputs and model, the classes, and the SHA-256
of the arrays.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from meta_opt.models.encoders.registry import filled
from meta_opt.models.lora import merge_lora
from meta_opt.models.multimodal import Multimodal
from meta_opt.models.parameters import by_path
from meta_opt.tensor_files import parse_tensors
from meta_opt.text_files import read_json, write_json
from meta_opt.types import from_config, write_atomic
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.multimodal_inputs import Inputs, InputsConfig
from meta_opt.workloads.multimodal_model import MultimodalModelConfig, model_factory

_FORMAT = 1


def check_export(export: ExportConfig, model: MultimodalModelConfig) -> None:
    """Checks, before training, that the export can be written.

    Raises:
        ValueError: a format other than ``model``.
    """
    if export.path and export.format != "model":
        raise ValueError(
            f"export.format={export.format!r} is for vision-text models; a multimodal "
            f"one (model.trainable={model.trainable!r}) is written as 'model'"
        )


def write_multimodal(
    export: ExportConfig,
    model: Multimodal,
    inputs: InputsConfig,
    config: MultimodalModelConfig,
    class_names: tuple[str, ...] = (),
) -> None:
    """Writes a trained model; adapters are merged.

    Args:
        export: path of the files.
        model: it may be modified.
        inputs: the settings of its inputs.
        config: the settings that it was built from.
        class_names: K names of a classification.
    """
    if config.trainable == "lora":
        merge_lora(model)
    variables = by_path(model, nnx.Variable)
    arrays = {name: np.asarray(x[...]) for name, x in variables.items()}
    data = safetensors.numpy.save(arrays)
    about = {
        "format": _FORMAT,
        "inputs": dataclasses.asdict(inputs),
        "model": dataclasses.asdict(config),
        "class_names": class_names,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    with write_atomic(f"{export.path}.safetensors") as file:
        file.write_bytes(data)
    write_json(f"{export.path}.json", about)


def read_settings(
    path: str | os.PathLike,
) -> tuple[InputsConfig, MultimodalModelConfig, dict[str, Any]]:
    """The settings of inputs and model of an export, and its whole JSON object.

    Raises:
        ValueError: no such file, or one of another format.
    """
    file = Path(f"{path}.json")
    try:
        about = read_json(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if about.get("format") != _FORMAT:
        raise ValueError(f"{file} is not of a multimodal model of format {_FORMAT}")
    try:
        model = from_config(MultimodalModelConfig, about.get("model"), "model")
        inputs = from_config(InputsConfig, about.get("inputs"), "inputs")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    # Adapters were merged into the kernels.
    return inputs, dataclasses.replace(model, trainable="all"), about


def read_multimodal(path: str | os.PathLike, inputs: Inputs) -> Multimodal:
    """Reads a model that `write_multimodal` wrote.

    Args:
        path: without suffix.
        inputs: `read_inputs` of the settings that `read_settings` returns.

    Raises:
        ValueError: missing or damaged files, or arrays of another model.
    """
    _, config, about = read_settings(path)
    file = Path(f"{path}.safetensors")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if (found := hashlib.sha256(data).hexdigest()) != about.get("sha256"):
        raise ValueError(
            f"{file} is damaged: its SHA-256 is {found}, {path}.json has "
            f"{about.get('sha256')}"
        )
    create = model_factory(config, inputs)
    try:
        return filled(lambda: create(jax.random.key(0)), parse_tensors(data, file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
