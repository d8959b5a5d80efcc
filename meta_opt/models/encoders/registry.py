"""Encoders by name, from folders of `meta_opt.data.catalog.encoder_weights`."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models.encoders.efficientnet import (
    EfficientNet,
    EfficientNetConfig,
    efficientnet_parameters,
)
from meta_opt.models.encoders.minilm import MiniLM, MiniLMConfig, minilm_parameters
from meta_opt.models.encoders.whisper import (
    WhisperConfig,
    WhisperEncoder,
    whisper_parameters,
)
from meta_opt.models.parameters import by_path, mismatch
from meta_opt.tensor_files import read_tensors
from meta_opt.text_files import read_json
from meta_opt.types import near_match

Tensors = Mapping[str, np.ndarray]
Build = Callable[[Tensors, Mapping[str, Any]], nnx.Module]
"""Makes a module from tensors and changes of the numerics."""


def _minilm(tensors: Tensors, changes: Mapping[str, Any]) -> nnx.Module:
    config = MiniLMConfig(**changes)
    values = minilm_parameters(tensors, config.depth)
    return filled(lambda: MiniLM(config, rngs=nnx.Rngs(0)), values)


def _efficientnet(tensors: Tensors, changes: Mapping[str, Any]) -> nnx.Module:
    config = EfficientNetConfig(**changes)
    values = efficientnet_parameters(tensors, config)
    return filled(lambda: EfficientNet(config, rngs=nnx.Rngs(0)), values)


def _whisper(tensors: Tensors, changes: Mapping[str, Any]) -> nnx.Module:
    config = WhisperConfig(**changes)
    values = whisper_parameters(tensors, config.depth)
    return filled(lambda: WhisperEncoder(config, rngs=nnx.Rngs(0)), values)


_ENCODERS: dict[str, Build] = {
    "minilm": _minilm,
    "efficientnet_lite0": _efficientnet,
    "whisper_tiny": _whisper,
}


def names() -> list[str]:
    """Names of the encoders that can be loaded."""
    return sorted(_ENCODERS)


def register(name: str, build: Build) -> None:
    """Registers an encoder.

    Args:
        name: a new name.
        build: function that makes a module from the tensors of ``model.safetensors``.

    Raises:
        ValueError: if the name is taken.
    """
    if name in _ENCODERS:
        raise ValueError(f"the encoder {name!r} is already registered")
    _ENCODERS[name] = build


def load_encoder(name: str, folder: str | os.PathLike, **changes: Any) -> nnx.Module:
    """Loads an encoder.

    Args:
        name: one of `names`.
        folder: folder with ``model.safetensors`` and ``about.json``, see
            `meta_opt.data.catalog.encoder_weights.encoder_folder`.
        **changes: changed numerics: ``dtype``, ``param_dtype``, ``remat``,
            ``scan_layers``.

    Raises:
        ValueError: an unknown name, a damaged file, or tensors of another architecture.
        FileNotFoundError: the folder does not exist.

    Example:
        model = load_encoder("minilm", "data/encoders/minilm", dtype="bfloat16")
    """
    if name not in _ENCODERS:
        raise ValueError(
            f"unknown encoder {name!r}{near_match(name, names())}; available: "
            f"{', '.join(names())}"
        )
    folder = Path(folder)
    tensors = read_tensors(
        folder / "model.safetensors",
        str(read_json(folder / "about.json").get("sha256")),
        listed_in="about.json",
        remedy="delete the folder and prepare it again",
    )
    try:
        return _ENCODERS[name](tensors, changes)
    except KeyError as error:
        raise ValueError(f"{folder} lacks the tensor {error} of {name}") from None


def filled(create: Callable[[], nnx.Module], values: Tensors) -> Any:
    """Creates a module whose variables have the given values.

    Args:
        create: function that creates the module; it is only traced.
        values: values by '/'-joined path.

    Raises:
        ValueError: missing or unknown values, or values of another shape.
    """
    model = nnx.eval_shape(create)
    variables = by_path(model, nnx.Variable)
    problems = mismatch(
        {path: value.shape for path, value in values.items()},
        {path: variable.shape for path, variable in variables.items()},
    )
    if problems:
        raise ValueError(f"tensors of another architecture: {problems}")
    for path, variable in variables.items():
        variable.set_value(jnp.asarray(values[path], variable.dtype))
    return model
