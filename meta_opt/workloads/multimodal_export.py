"""Exports of multimodal models: files of arrays and of settings.

``PATH.safetensors`` has every array of the model by its '/'-joined path, with adapters
merged; ``PATH.json`` has the settings of inputs and model, the classes, and the SHA-256
of the arrays.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax

from meta_opt.models.lora import merge_lora
from meta_opt.models.multimodal import Multimodal
from meta_opt.text_files import read_versioned, write_json
from meta_opt.types import from_config
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.exported_arrays import read_arrays, write_arrays
from meta_opt.workloads.multimodal_inputs import Inputs, InputsConfig
from meta_opt.workloads.multimodal_model import MultimodalModelConfig, model_factory

_FORMAT = 2


def write_multimodal(
    export: ExportConfig,
    model: Multimodal,
    inputs: InputsConfig,
    config: MultimodalModelConfig,
    class_names: tuple[str, ...] = (),
) -> None:
    """Writes a trained model; adapters are merged.

    Args:
        export: path of the files, without suffix.
        model: trained model; it may be modified.
        inputs: configuration of the model's inputs.
        config: configuration that the model was built from.
        class_names: K class names of a classification task.
    """
    if config.trainable == "lora":
        merge_lora(model)
    digest = write_arrays(_arrays(export.path), model)
    about = {
        "format": _FORMAT,
        "inputs": dataclasses.asdict(inputs),
        "model": dataclasses.asdict(config),
        "class_names": class_names,
        "sha256": digest,
    }
    write_json(f"{export.path}.json", about)


def read_settings(
    path: str | os.PathLike,
) -> tuple[InputsConfig, MultimodalModelConfig, dict[str, Any]]:
    """Reads the settings of inputs and model of an export, and its JSON object.

    Raises:
        ValueError: there is no such file, or it is of another format.
    """
    file = Path(f"{path}.json")
    about = read_versioned(file, _FORMAT)
    try:
        model = from_config(MultimodalModelConfig, about.get("model"), "model")
        inputs = from_config(InputsConfig, about.get("inputs"), "inputs")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    # No LoRA: the adapters were merged into the kernels on export.
    return inputs, dataclasses.replace(model, trainable="all"), about


def read_multimodal(path: str | os.PathLike, inputs: Inputs) -> Multimodal:
    """Reads a model that `write_multimodal` wrote.

    Args:
        path: path of the export, without suffix.
        inputs: result of `read_inputs` for the settings from `read_settings`.

    Raises:
        ValueError: files are missing or damaged, or of another model.
    """
    _, config, about = read_settings(path)
    create = model_factory(config, inputs)
    return read_arrays(
        _arrays(path),
        lambda: create(jax.random.key(0)),
        about.get("sha256"),
        Path(f"{path}.json"),
    )


def _arrays(path: str | os.PathLike) -> Path:
    return Path(f"{path}.safetensors")
