"""Loads ResNet and ConvNeXt from folders in the format of Transformers or timm.

A folder has ``config.json`` and ``model.safetensors``: Hugging Face's
``microsoft/resnet-50`` and ``facebook/convnext-tiny-224``, or timm's
(``timm.models.save_for_hf``, and its folders on the hub).
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from meta_opt.image_processor import is_number, read_image_processor
from meta_opt.models.convnets.base import ConvNet, ConvNetConfig
from meta_opt.models.convnets.classifier import Classifier, Head
from meta_opt.models.convnets.convnext import ConvNeXt, ConvNeXtConfig
from meta_opt.models.convnets.names import (
    TIMM,
    TRANSFORMERS,
    head_name,
    places,
    spelling,
)
from meta_opt.models.convnets.resnet import ResNet, ResNetConfig
from meta_opt.models.huggingface.files import Files, read_json
from meta_opt.models.huggingface.places import check, reader
from meta_opt.models.huggingface.settings import section
from meta_opt.models.parameters import by_path
from meta_opt.types import check_name

Settings = Mapping[str, Any]

_WIDE = ((128, 256, 512, 1024), (192, 384, 768, 1536))
ARCHITECTURES: dict[str, ConvNetConfig] = {
    "resnet26": ResNetConfig(depths=(2, 2, 2, 2)),
    "resnet50": ResNetConfig(),
    "resnet101": ResNetConfig(depths=(3, 4, 23, 3)),
    "resnet152": ResNetConfig(depths=(3, 8, 36, 3)),
    "convnext_tiny": ConvNeXtConfig(),
    "convnext_small": ConvNeXtConfig(depths=(3, 3, 27, 3)),
    "convnext_base": ConvNeXtConfig(depths=(3, 3, 27, 3), widths=_WIDE[0]),
    "convnext_large": ConvNeXtConfig(depths=(3, 3, 27, 3), widths=_WIDE[1]),
}
"""Known architectures by timm's names."""


def make_convnet(config: ConvNetConfig, *, rngs: nnx.Rngs) -> ConvNet:
    """Creates a network with random weights.

    Args:
        config: a `ResNetConfig` or `ConvNeXtConfig`.
        rngs: random streams; ``params`` initialises the parameters.
    """
    if isinstance(config, ResNetConfig):
        return ResNet(config, rngs=rngs)
    assert isinstance(config, ConvNeXtConfig)
    return ConvNeXt(config, rngs=rngs)


def read_config(folder: str | os.PathLike) -> ConvNetConfig:
    """Reads the architecture from the ``config.json`` of a folder.

    Channel statistics come from the image processor's settings (Transformers) or from
    ``pretrained_cfg`` (timm).

    Raises:
        ValueError: a missing file, or another architecture; the message names the
            setting.
    """
    return _read(Path(folder))[0]


def load_classifier(
    folder: str | os.PathLike,
    classes: int = 0,
    dropout: float = 0.5,
    *,
    rngs: nnx.Rngs | None = None,
    **changes: Any,
) -> Classifier:
    """Loads a network with its own or a new head.

    Args:
        folder: model folder, see the module's documentation.
        classes: K, number of classes of a new head; 0 loads the head of the files.
        dropout: dropout rate of the head.
        rngs: random streams; ``params`` initialises a new head.
        **changes: fields of the configuration that do not affect parameters, such as
            ``dtype`` and ``drop_path``.

    Returns:
        The model; batch norms use their running statistics.

    Raises:
        ValueError: an incomplete or damaged folder, or tensors that do not fit its
            ``config.json`` (the message names them); no head in the files and no new
            one requested.

    Example:
        model = load_classifier("resnet-50", classes=30, rngs=nnx.Rngs(0))
    """
    written, library = _read(Path(folder))
    config = dataclasses.replace(written, **changes)
    files = Files(Path(folder), lambda name: spelling(written, library, name))
    head = head_name(written, library)
    has_head = head in files.names()
    if not has_head and not classes:
        raise ValueError(f"{folder} has no head ({head}): give a number of classes")
    there = files.shape(head)[0] if has_head else classes

    def create() -> Classifier:
        trunk = make_convnet(config, rngs=nnx.Rngs(0))
        return Classifier(trunk, there, dropout, rngs=nnx.Rngs(0))

    model = nnx.eval_shape(create)
    variables = by_path(model, nnx.Variable)
    if not has_head:
        variables = {k: v for k, v in variables.items() if not k.startswith("head/")}
    where = places(
        config, library, {path: tuple(v.shape) for path, v in variables.items()}
    )
    check(files, where)
    for path, variable in variables.items():
        read = reader(files, where[path], variable.shape, variable.dtype)
        whole = (slice(None),) * len(variable.shape)
        variable.set_value(jnp.asarray(read(whole)))
    if classes:
        rngs = nnx.Rngs(0) if rngs is None else rngs
        model.head = Head(config.width, classes, dropout, rngs=rngs)
    return model


def _read(folder: Path) -> tuple[ConvNetConfig, str]:
    """The architecture, and the library of the format."""
    given = read_json(folder / "config.json")
    try:
        if "architecture" in given:
            return _parse_timm(given), TIMM
        config = _parse_transformers(given)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    processor = read_image_processor(folder)
    mean, std = processor.channels(config.image_mean, config.image_std)
    return dataclasses.replace(config, image_mean=mean, image_std=std), TRANSFORMERS


def _parse_transformers(given: Settings) -> ConvNetConfig:
    kind = given.get("model_type")
    parsers: dict[Any, Callable[[Settings], ConvNetConfig]]
    parsers = {"resnet": _parse_resnet, "convnext": _parse_convnext}
    check_name("model_type", kind, parsers)
    return parsers[kind](given)


def _parse_resnet(given: Settings) -> ConvNetConfig:
    _require(
        given,
        layer_type="bottleneck",
        hidden_act="relu",
        downsample_in_first_stage=False,
        downsample_in_bottleneck=False,
        num_channels=3,
    )
    default = ResNetConfig()
    return ResNetConfig(
        depths=_numbers(given, "depths", default.depths),
        widths=_numbers(given, "hidden_sizes", default.widths),
        stem=given.get("embedding_size", default.stem),
    )


def _parse_convnext(given: Settings) -> ConvNetConfig:
    _require(given, hidden_act="gelu", patch_size=4, num_channels=3)
    default = ConvNeXtConfig()
    return ConvNeXtConfig(
        depths=_numbers(given, "depths", default.depths),
        widths=_numbers(given, "hidden_sizes", default.widths),
        drop_path=given.get("drop_path_rate", 0.0),
        head_epsilon=given.get("layer_norm_eps", 1e-12),
    )


def _parse_timm(given: Settings) -> ConvNetConfig:
    name = given["architecture"]
    check_name("architecture", name, ARCHITECTURES)
    config = ARCHITECTURES[name]
    arguments = section(given, "model_args", {})
    _require(arguments, in_chans=3, global_pool="avg")
    changes: dict[str, Any] = {}
    for argument in ("num_classes", "in_chans", "global_pool"):
        arguments.pop(argument, None)
    if isinstance(config, ResNetConfig):
        names, scale = ("layers", "channels"), 4
    else:
        names, scale = ("depths", "dims"), 1
        changes["drop_path"] = arguments.pop("drop_path_rate", 0.0)
    depths = _numbers(arguments, names[0], config.depths)
    widths = config.widths
    if arguments.get(names[1]):
        widths = tuple(scale * n for n in _numbers(arguments, names[1], ()))
    if unknown := [name for name in arguments if name not in names]:
        raise ValueError(f"model_args: {', '.join(unknown)} cannot be read here")
    statistics = section(given, "pretrained_cfg", {})
    return dataclasses.replace(
        config,
        depths=depths,
        widths=widths,
        image_mean=_numbers(statistics, "mean", config.image_mean),
        image_std=_numbers(statistics, "std", config.image_std),
        **changes,
    )


def _numbers(given: Settings, name: str, default: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list of finite numbers, or the default."""
    found = given.get(name) or default
    if not isinstance(found, list | tuple) or not all(map(is_number, found)):
        raise ValueError(f"{name}={found!r} must be a list of numbers")
    return tuple(found)


def _require(given: Settings, **wanted: Any) -> None:
    """Raises ValueError for settings that the models here do not support."""
    for name, value in wanted.items():
        if given.get(name, value) != value:
            raise ValueError(f"{name}={given[name]!r} must be {value!r}")
