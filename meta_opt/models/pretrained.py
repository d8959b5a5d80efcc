"""Saving and loading of our own weights: float16 safetensors, JSON and a model card.

``name.safetensors`` has the parameters, and the statistics of batch norms, by
'/'-joined path; ``name.json`` has the kind
of model, ``vision_text`` or ``generative``, its configuration, the SHA-256 of the
weights file, the number of parameters and the format version; ``name.md`` is the model
card. Nothing is pickled.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.error_messages import first_few
from meta_opt.models.generative import Generative, GenerativeConfig
from meta_opt.models.parameters import STORED, by_path, exportable, mismatch
from meta_opt.models.vision_text import VisionText, VisionTextConfig, parameter_count
from meta_opt.tensor_files import read_tensors, write_tensors
from meta_opt.text_files import read_json, write_json
from meta_opt.types import check_name, from_config, near_match, write_atomic

FORMAT_VERSION = 2
_KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "vision_text": (VisionText, VisionTextConfig),
    "generative": (Generative, GenerativeConfig),
}
WEIGHTS_DIR = Path(__file__).parent / "weights"
"""Folder of the bundled weights."""


def names() -> list[str]:
    """Names of the bundled weights."""
    return sorted(path.stem for path in WEIGHTS_DIR.glob("*.json"))


def save(
    path: str | os.PathLike, model: VisionText | Generative, card: str | None = None
) -> None:
    """Writes ``path.safetensors``, ``path.json`` and, with a card, ``path.md``.

    Args:
        path: path without file extension.
        model: without adapters (`meta_opt.models.lora.merge_lora` folds them in).
        card: the model card, Markdown.

    Raises:
        ValueError: if a parameter is not finite in float16, belongs to an adapter or is
            int8.
    """
    tensors = {
        name: np.asarray(param[...], np.float32)
        for name, param in exportable(model).items()
    }
    limit = float(np.finfo(np.float16).max)
    if bad := [n for n, value in tensors.items() if not np.all(np.abs(value) <= limit)]:
        raise ValueError(f"not finite in float16: {first_few(bad)}")
    halves = {n: v.astype(np.float16) for n, v in tensors.items()}
    about = {
        "format_version": FORMAT_VERSION,
        "kind": next(k for k, (of, _) in _KINDS.items() if isinstance(model, of)),
        "config": dataclasses.asdict(model.config),
        "sha256": write_tensors(_with_suffix(path, ".safetensors"), halves),
        "parameters": parameter_count(model),
    }
    write_json(_with_suffix(path, ".json"), about)
    if card is not None:
        with write_atomic(_with_suffix(path, ".md")) as file:
            file.write_text(card)


def load(name_or_path: str | os.PathLike, **changes: Any) -> VisionText | Generative:
    """Loads weights that were saved by `save`.

    Args:
        name_or_path: one of `names`, or a path without file extension.
        **changes: fields of the configuration that do not affect parameters: ``dtype``,
            ``param_dtype`` (float32 by default), ``remat``, ``scan_layers``.

    Returns:
        The model.

    Raises:
        ValueError: if there are no such weights, or the file does not match its JSON or
            the configuration.
    """
    path = _find(name_or_path)
    about = _about(path)
    kind, config = _config(path, about, changes)
    tensors = read_tensors(
        _with_suffix(path, ".safetensors"),
        str(about.get("sha256")),
        listed_in=f"{path}.json",
        remedy="fetch both files again",
    )
    model = nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
    params = by_path(model, STORED)
    problems = mismatch(
        {name: tensor.shape for name, tensor in tensors.items()},
        {name: param.shape for name, param in params.items()},
    )
    if problems:
        raise ValueError(
            f"{path}.safetensors is of another architecture than its configuration: "
            f"{problems}"
        )
    for name, param in params.items():
        param.set_value(jnp.asarray(tensors[name], param.dtype))
    return model


def read_config(
    name_or_path: str | os.PathLike,
) -> VisionTextConfig | GenerativeConfig:
    """Reads the architecture of saved weights, without the weights.

    Raises:
        ValueError: if there are no such weights.
    """
    path = _find(name_or_path)
    return _config(path, _about(path), {})[1]


def _about(path: Path) -> dict[str, Any]:
    about = read_json(_with_suffix(path, ".json"))
    if (version := about.get("format_version")) != FORMAT_VERSION:
        raise ValueError(
            f"{path}.json has format version {version!r}; this code reads "
            f"{FORMAT_VERSION}"
        )
    return about


def _config(
    path: Path, about: dict[str, Any], changes: dict[str, Any]
) -> tuple[type[Any], VisionTextConfig | GenerativeConfig]:
    """The model's class and its configuration."""
    numerics = {"param_dtype": "float32", **changes}
    name = about.get("kind", "vision_text")
    try:
        check_name("kind", name, _KINDS)
        kind, settings = _KINDS[name]
        written = about.get("config")
        if not isinstance(written, dict):
            raise ValueError(f"config={written!r} is not a JSON object")
        return kind, from_config(settings, {**written, **numerics})
    except ValueError as error:
        raise ValueError(f"{path}.json: {error}") from None


def _find(name_or_path: str | os.PathLike) -> Path:
    for path in (WEIGHTS_DIR / name_or_path, Path(name_or_path)):
        if _with_suffix(path, ".json").is_file():
            return path
    raise ValueError(
        f"no weights {os.fspath(name_or_path)!r}"
        f"{near_match(os.fspath(name_or_path), names())} (shipped: "
        f"{', '.join(names()) or 'none'}; else a path without suffix, or a folder)"
    )


def _with_suffix(path: str | os.PathLike, suffix: str) -> Path:
    return Path(f"{os.fspath(path)}{suffix}")
