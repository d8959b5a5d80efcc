"""Loading and saving of whole model folders."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.image_processor import BICUBIC, read_image_processor
from meta_opt.models.generative import Generative, GenerativeConfig
from meta_opt.models.huggingface import contrastive, paligemma
from meta_opt.models.huggingface.files import (
    Files,
    read_json,
    write_tensors,
)
from meta_opt.models.huggingface.names import paligemma_spelling, places
from meta_opt.models.huggingface.places import check, reader, tensors
from meta_opt.models.parameters import by_path, exportable
from meta_opt.models.towers import VisionConfig, resize_positions
from meta_opt.models.vision_text import VisionText, VisionTextConfig
from meta_opt.text_files import write_json
from meta_opt.tree_paths import leaves_by_path
from meta_opt.types import PyTree

C = TypeVar("C", bound=VisionConfig)
M = TypeVar("M", bound=nnx.Module)
Shardings = Callable[[PyTree], PyTree]
Settings = Mapping[str, Any]


def read_config(folder: str | os.PathLike) -> VisionTextConfig:
    """Reads the architecture from the ``config.json`` of CLIP or SigLIP.

    Channel statistics come from the image processor's settings, if available.

    Raises:
        ValueError: a missing file, a model that is neither CLIP nor SigLIP, or one with
            parts that `VisionText` does not support; the message names the setting.
    """
    return _read_config(Path(folder), contrastive.parse_config)


def read_generative_config(folder: str | os.PathLike) -> GenerativeConfig:
    """Reads the architecture from the ``config.json`` of PaliGemma.

    Raises:
        ValueError: as `read_config`, for `Generative`.
    """
    return _read_config(Path(folder), paligemma.parse_config)


def is_generative(folder: str | os.PathLike) -> bool:
    """Whether a folder's ``config.json`` is PaliGemma's.

    Raises:
        ValueError: a missing or damaged file.
    """
    return read_json(Path(folder) / "config.json").get("model_type") == "paligemma"


def _read_config(folder: Path, parse: Callable[[Settings], C]) -> C:
    given = read_json(folder / "config.json")
    try:
        found = parse(given)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    processor = read_image_processor(folder)
    mean, std = processor.channels(found.image_mean, found.image_std)
    return dataclasses.replace(found, image_mean=mean, image_std=std)


def load(
    folder: str | os.PathLike, shardings: Shardings | None = None, **changes: Any
) -> VisionText:
    """Loads a CLIP or SigLIP model from a folder.

    Args:
        folder: folder with ``config.json`` and safetensors files.
        shardings: function from a nested dict of abstract parameters to their
            shardings, such as ``lambda p: parameter_shardings(rules, mesh, p)[0]``;
            None for the default device. Arrays are never materialised unsharded.
        **changes: fields of `VisionTextConfig` that do not affect parameters
            (``dtype``, ``param_dtype``, ``remat``), and ``image_size``, to which
            position embeddings are resized.

    Returns:
        The model.

    Raises:
        ValueError: an incomplete or damaged folder, or tensors that do not fit its
            ``config.json``; the message names them.

    Example:
        model = load("siglip-base-patch16-224", dtype="bfloat16")
    """
    written = read_config(folder)
    return _load(VisionText, written, changes, Files(Path(folder)), shardings)


def load_generative(
    folder: str | os.PathLike, shardings: Shardings | None = None, **changes: Any
) -> Generative:
    """Loads a PaliGemma model from a folder.

    Arguments, result and errors are those of `load`, for `Generative`.

    Example:
        model = load_generative("paligemma-3b-pt-224", param_dtype="bfloat16")
    """
    written = read_generative_config(folder)
    files = Files(Path(folder), paligemma_spelling)
    return _load(Generative, written, changes, files, shardings)


def _load(
    kind: Callable[..., M],
    written: VisionConfig,
    changes: Settings,
    files: Files,
    shardings: Shardings | None,
) -> M:
    """Creates a model of ``written`` with ``changes`` from files of ``written``."""
    config = dataclasses.replace(written, **changes)
    model, there = (
        nnx.eval_shape(lambda c=c: kind(c, rngs=nnx.Rngs(0))) for c in (config, written)
    )
    _fill(model, there, config, written, files, shardings)
    return model


def _fill(
    model: nnx.Module,
    there: nnx.Module,
    config: VisionConfig,
    written: VisionConfig,
    files: Files,
    shardings: Shardings | None,
) -> None:
    """Fills an abstract model with arrays.

    Args:
        model: abstract model to fill.
        there: abstract model of the files.
        config: configuration of ``model``.
        written: configuration of ``there``.
        files: files with the tensors.
        shardings: see `load`.
    """
    abstract = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    placed = leaves_by_path(shardings(abstract)) if shardings else {}
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = {path: tuple(param.shape) for path, param in by_path(there).items()}
    where = places(written, shapes)
    check(files, where)
    for path, param in by_path(model).items():
        if path not in where:  # CLIP's logit bias
            assert isinstance(config, VisionTextConfig)
            param.set_value(jnp.full(param.shape, config.init_bias, param.dtype))
            continue
        place = where[path]
        if path == "vision/positions" and config.grid != written.grid:
            place = place._replace(
                from_file=lambda x: np.asarray(
                    resize_positions(x, written.grid, config.grid)
                )
            )
        value = jax.make_array_from_callback(
            param.shape,
            placed.get(path, default),
            reader(files, place, param.shape, param.dtype),
        )
        param.set_value(value)


def check_writable(config: VisionTextConfig | GenerativeConfig) -> dict[str, Any]:
    """Returns the ``config.json`` that `save` would write for an architecture.

    Raises:
        ValueError: an architecture other than CLIP's, SigLIP's or PaliGemma's.
    """
    if isinstance(config, GenerativeConfig):
        return paligemma.write_config(config)
    return contrastive.write_config(config)


def save(
    folder: str | os.PathLike,
    model: VisionText | Generative,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Saves a model in the format of Transformers.

    Args:
        folder: created if needed.
        model: a model of CLIP's, SigLIP's or PaliGemma's architecture, without
            adapters.
        max_shard_bytes: largest size of a file, unless it has a single tensor.

    Raises:
        ValueError: another architecture; adapters; int8 kernels.
    """
    folder, config = Path(folder), model.config
    settings = check_writable(config)
    params = exportable(model)
    where = places(config, {k: tuple(v.shape) for k, v in params.items()})
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, tensors(params, where), max_shard_bytes)
    write_json(folder / "config.json", settings)
    write_json(folder / "preprocessor_config.json", _image_processor(config, settings))


def _image_processor(config: VisionConfig, settings: Settings) -> dict[str, Any]:
    """Settings of the image processor of a model."""
    side = config.image_size
    square = {"height": side, "width": side}
    of_clip = settings["model_type"] == "clip"
    images = {
        "image_processor_type": f"{'CLIP' if of_clip else 'Siglip'}ImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side} if of_clip else square,
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }
    if of_clip:
        images |= {"do_center_crop": True, "crop_size": square}
    if isinstance(config, GenerativeConfig):
        images["image_seq_length"] = config.grid**2
        images["processor_class"] = "PaliGemmaProcessor"
    return images
