"""Arrays of exported models: safetensors files whose hash the settings record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flax import nnx

from meta_opt.models.encoders.registry import filled
from meta_opt.models.parameters import by_path
from meta_opt.tensor_files import read_tensors, write_tensors

_Module = TypeVar("_Module", bound=nnx.Module)


def write_arrays(file: Path, model: nnx.Module) -> str:
    """Writes every array of a model by its '/'-joined path, bit for bit.

    Args:
        file: file to write atomically.
        model: a concrete model.

    Returns:
        The SHA-256 of the file, for the settings file.
    """
    variables = by_path(model, nnx.Variable)
    return write_tensors(file, {k: np.asarray(x[...]) for k, x in variables.items()})


def read_arrays(
    file: Path, create: Callable[[], _Module], sha256: Any, settings: Path
) -> _Module:
    """Reads a model that `write_arrays` wrote.

    Args:
        file: file of the arrays.
        create: creates a model of the same architecture; it is only traced.
        sha256: SHA-256 that the settings record.
        settings: path of the settings file, for error messages.

    Raises:
        ValueError: the file is missing or damaged, or of another architecture.
    """
    try:
        arrays = read_tensors(file, str(sha256), settings.name, "export it again")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    try:
        return filled(create, arrays)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
