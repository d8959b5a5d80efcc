"""Settings of an encoder in ``config.json``, and a round-trip check."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from meta_opt.models.towers import TowerConfig, VisionConfig
from meta_opt.types import check_name

_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Defaults that Transformers omits from config.json.
BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
IMAGES = {**BASE, "num_channels": 3, "image_size": 224}
OF_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
OF_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}


def parse_activation(name: str) -> str:
    """Maps Transformers' name of an activation to ours.

    Raises:
        ValueError: one that is not known.

    >>> parse_activation("gelu_pytorch_tanh")
    'gelu_tanh'
    """
    check_name("hidden_act", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]


def write_activation(name: str) -> str:
    """Maps our name of an activation to Transformers'.

    >>> write_activation("gelu_tanh")
    'gelu_pytorch_tanh'
    """
    return {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[name]


def section(
    given: Mapping[str, Any], name: str, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """A section of ``config.json`` with the defaults filled in.

    Raises:
        ValueError: the section is not an object.
    """
    part = given.get(name) or {}
    if not isinstance(part, Mapping):
        raise ValueError(f"{name}={part!r} is not a JSON object")
    return {**defaults, **part}


def parse_tower(settings: Mapping[str, Any], **changes: Any) -> TowerConfig:
    """Parses the settings of an encoder.

    Raises:
        ValueError: an activation that is not known.
    """
    return TowerConfig(
        width=settings["hidden_size"],
        depth=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        mlp_width=settings["intermediate_size"],
        activation=parse_activation(settings["hidden_act"]),
        norm_epsilon=settings["layer_norm_eps"],
        **changes,
    )


def write_tower(tower: TowerConfig, model_type: str) -> dict[str, Any]:
    """Returns the settings of an encoder."""
    return {
        "model_type": model_type,
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": write_activation(tower.activation),
        "layer_norm_eps": tower.norm_epsilon,
    }


def lost(
    config: VisionConfig, again: Callable[[], VisionConfig], free: Iterable[str]
) -> str:
    """Compares a configuration with itself after writing and reading.

    Args:
        config: the original configuration.
        again: function that writes and reads it.
        free: fields that may differ, besides numerics and channel statistics, which
            ``config.json`` does not contain.

    Returns:
        Names of differing fields, or the error of reading; "" if there are none.
    """
    free = {*free, "dtype", "param_dtype", "remat", "scan_layers"}
    free |= {"image_mean", "image_std"}
    try:
        back = dataclasses.asdict(again())
    except ValueError as error:
        return str(error)
    ours = dataclasses.asdict(config).items()
    return ", ".join(k for k, v in ours if k not in free and v != back[k])
