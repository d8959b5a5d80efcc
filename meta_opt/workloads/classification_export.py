"""Exports of image classifiers: folders with arrays, classes and preprocessing.

``model.safetensors`` has every array of the network by its '/'-joined path, bit for
bit; ``classifier.json`` has the architecture, the classes in the order of the logits,
the preprocessing of images, and the SHA-256 of the arrays.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.models.convnets import (
    Classifier,
    ConvNeXtConfig,
    ResNetConfig,
    make_convnet,
)
from meta_opt.models.convnets.base import MAX_BLOCKS
from meta_opt.models.encoders import EfficientNet, EfficientNetConfig
from meta_opt.models.encoders.efficientnet import Stage
from meta_opt.models.parameters import parameter_count
from meta_opt.models.settings import is_count
from meta_opt.text_files import read_versioned, write_json
from meta_opt.types import check_name, from_config
from meta_opt.workloads.exported_arrays import read_arrays, write_arrays

SETTINGS, ARRAYS = "classifier.json", "model.safetensors"
_FORMAT = 1
_ARCHITECTURES: dict[str, type[Any]] = {
    "resnet": ResNetConfig,
    "convnext": ConvNeXtConfig,
    "efficientnet": EfficientNetConfig,
}


@dataclasses.dataclass(frozen=True)
class ClassifierSettings:
    """The settings of an exported classifier, without its arrays.

    Attributes:
        architecture: architecture of the trunk.
        class_names: K names, in the order of the logits.
        fit: how images are scaled to the network's input.
        sha256: SHA-256 of the file of arrays.
    """

    architecture: Any
    class_names: tuple[str, ...]
    fit: ImageFit
    sha256: str = ""


def is_classifier(path: str | os.PathLike) -> bool:
    """Whether a path is a folder that `write_classifier` wrote."""
    return (Path(path) / SETTINGS).is_file()


def with_trained_top(whole: Classifier, top: Classifier) -> Classifier:
    """Returns a network with the last stages and the head of another one.

    Args:
        whole: a network from images to logits; it is not changed.
        top: a network from outputs of the frozen stages to logits, as
            `meta_opt.workloads.classification_network.network_parts` splits it.
    """
    assembled = nnx.clone(top)
    trunk: Any = whole.trunk
    assembled.trunk = trunk.with_upper(top.trunk)
    return assembled


def write_classifier(
    folder: str | os.PathLike,
    model: Classifier,
    class_names: tuple[str, ...],
    fit: ImageFit,
) -> None:
    """Writes an image classifier, replacing the one in the folder, if any.

    Args:
        folder: output folder, created if needed.
        model: the whole network.
        class_names: K names, in the order of its logits.
        fit: how images were scaled in training.

    Raises:
        ValueError: the numbers of names and logits differ.
    """
    classes = model.head.linear.out_features
    if classes != len(class_names):
        raise ValueError(
            f"{len(class_names)} class names do not match {classes} logits"
        )
    folder = Path(folder)
    config: Any = model.trunk.config  # type: ignore[attr-defined]
    digest = write_arrays(folder / ARRAYS, model)
    network = next(k for k, of in _ARCHITECTURES.items() if isinstance(config, of))
    about = {
        "format": _FORMAT,
        "network": network,
        "architecture": dataclasses.asdict(config),
        "class_names": class_names,
        "image": dataclasses.asdict(fit),
        "parameters": parameter_count(model),
        "sha256": digest,
    }
    # Written last, so that settings never refer to missing arrays.
    write_json(folder / SETTINGS, about)


def read_settings(folder: str | os.PathLike) -> ClassifierSettings:
    """Reads the settings of an exported classifier.

    Raises:
        ValueError: the file is missing, damaged, or of another format.
    """
    path = Path(folder) / SETTINGS
    about = read_versioned(path, _FORMAT)
    try:
        return _parse_settings(about)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parse_settings(about: Mapping[str, Any]) -> ClassifierSettings:
    needed = ("network", "architecture", "class_names", "image", "sha256")
    if absent := [repr(key) for key in needed if about.get(key) is None]:
        raise ValueError(f"it is damaged: it lacks {', '.join(absent)}")
    network, names, given = (about[key] for key in ("network", "class_names", "image"))
    check_name("network", network, _ARCHITECTURES)
    if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
        raise ValueError(f"class_names={names!r} must be a list of strings")
    architecture = about["architecture"]
    if network == "efficientnet" and isinstance(architecture, Mapping):
        architecture = {**architecture, "stages": _stages(architecture)}
    return ClassifierSettings(
        from_config(_ARCHITECTURES[network], architecture, "architecture"),
        tuple(names),
        from_config(ImageFit, given, "image"),
        str(about["sha256"]),
    )


def _stages(architecture: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Parses EfficientNet's stages, which are lists of numbers in JSON."""
    given = architecture.get("stages")
    if (
        not isinstance(given, list)
        or not all(isinstance(x, list) and len(x) == len(Stage._fields) for x in given)
        or not all(is_count(n) for x in given for n in x)
        or sum(x[0] for x in given) > MAX_BLOCKS
    ):
        raise ValueError(
            f"stages={given!r} must be lists of {', '.join(Stage._fields)}, of at most "
            f"{MAX_BLOCKS} blocks"
        )
    return tuple(Stage(*x) for x in given)


def read_classifier(
    folder: str | os.PathLike, dtype: str = "float32"
) -> tuple[Classifier, ClassifierSettings]:
    """Reads a classifier that `write_classifier` wrote.

    Args:
        folder: folder of the two files.
        dtype: dtype of the computation.

    Returns:
        The network in inference mode, and its settings.

    Raises:
        ValueError: files are missing or damaged, or do not fit the architecture.
    """
    settings = read_settings(folder)
    architecture = dataclasses.replace(settings.architecture, dtype=dtype)

    def create() -> Classifier:
        rngs = nnx.Rngs(0)
        trunk: Any
        if isinstance(architecture, EfficientNetConfig):
            trunk = EfficientNet(architecture, rngs=rngs)
        else:
            trunk = make_convnet(architecture, rngs=rngs)
        # No dropout: the model is only used for inference.
        return Classifier(trunk, len(settings.class_names), 0.0, rngs=rngs)

    folder = Path(folder)
    arrays, about = folder / ARRAYS, folder / SETTINGS
    return read_arrays(arrays, create, settings.sha256, about), settings
