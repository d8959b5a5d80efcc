"""Mapping of a `Classifier`'s variables to tensor names in Transformers and timm.

Tables map our names of modules and variables to theirs; ``{s}`` is the index of a
stage, ``{n}`` the same counted from 1, ``{b}`` the index of a block.
"""

import re
from collections.abc import Mapping

from meta_opt.models.convnets.base import ConvNetConfig
from meta_opt.models.convnets.resnet import ResNetConfig
from meta_opt.models.huggingface.places import Place

TRANSFORMERS, TIMM = "transformers", "timm"
_BLOCK = "trunk/stages/{s}/blocks/{b}"
_RESNET_PARTS = ("reduce", "filter", "expand")
_RESNET = {
    TRANSFORMERS: {
        "trunk/stem/conv/conv": "resnet.embedder.embedder.convolution",
        "trunk/stem/conv/norm": "resnet.embedder.embedder.normalization",
        **{
            f"{_BLOCK}/{part}/{ours}": f"resnet.encoder.stages.{{s}}.layers.{{b}}"
            f".layer.{i}.{theirs}"
            for i, part in enumerate(_RESNET_PARTS)
            for ours, theirs in (("conv", "convolution"), ("norm", "normalization"))
        },
        f"{_BLOCK}/shortcut/conv": (
            "resnet.encoder.stages.{s}.layers.{b}.shortcut.convolution"
        ),
        f"{_BLOCK}/shortcut/norm": (
            "resnet.encoder.stages.{s}.layers.{b}.shortcut.normalization"
        ),
        "head/linear": "classifier.1",
    },
    TIMM: {
        "trunk/stem/conv/conv": "conv1",
        "trunk/stem/conv/norm": "bn1",
        **{
            f"{_BLOCK}/{part}/{ours}": f"layer{{n}}.{{b}}.{theirs}{i}"
            for i, part in enumerate(_RESNET_PARTS, start=1)
            for ours, theirs in (("conv", "conv"), ("norm", "bn"))
        },
        f"{_BLOCK}/shortcut/conv": "layer{n}.{b}.downsample.0",
        f"{_BLOCK}/shortcut/norm": "layer{n}.{b}.downsample.1",
        "head/linear": "fc",
    },
}
_CONVNEXT = {
    TRANSFORMERS: {
        "trunk/stem/conv": "convnext.embeddings.patch_embeddings",
        "trunk/stem/norm": "convnext.embeddings.layernorm",
        "trunk/stages/{s}/norm": "convnext.encoder.stages.{s}.downsampling_layer.0",
        "trunk/stages/{s}/conv": "convnext.encoder.stages.{s}.downsampling_layer.1",
        f"{_BLOCK}/depthwise": "convnext.encoder.stages.{s}.layers.{b}.dwconv",
        f"{_BLOCK}/norm": "convnext.encoder.stages.{s}.layers.{b}.layernorm",
        f"{_BLOCK}/up": "convnext.encoder.stages.{s}.layers.{b}.pwconv1",
        f"{_BLOCK}/down": "convnext.encoder.stages.{s}.layers.{b}.pwconv2",
        f"{_BLOCK}/layer_scale": (
            "convnext.encoder.stages.{s}.layers.{b}.layer_scale_parameter"
        ),
        "norm": "convnext.layernorm",
        "head/linear": "classifier",
    },
    TIMM: {
        "trunk/stem/conv": "stem.0",
        "trunk/stem/norm": "stem.1",
        "trunk/stages/{s}/norm": "stages.{s}.downsample.0",
        "trunk/stages/{s}/conv": "stages.{s}.downsample.1",
        f"{_BLOCK}/depthwise": "stages.{s}.blocks.{b}.conv_dw",
        f"{_BLOCK}/norm": "stages.{s}.blocks.{b}.norm",
        f"{_BLOCK}/up": "stages.{s}.blocks.{b}.mlp.fc1",
        f"{_BLOCK}/down": "stages.{s}.blocks.{b}.mlp.fc2",
        f"{_BLOCK}/layer_scale": "stages.{s}.blocks.{b}.gamma",
        "norm": "head.norm",
        "head/linear": "head.fc",
    },
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def head_name(config: ConvNetConfig, library: str) -> str:
    """Name of the linear head's tensor [K, D]."""
    return f"{_table(config, library)['head/linear']}.weight"


def spelling(config: ConvNetConfig, library: str, name: str) -> str:
    """Normalises a tensor's name; files of headless Transformers models lack a prefix.

    >>> spelling(ResNetConfig(), TRANSFORMERS, "embedder.embedder.convolution.weight")
    'resnet.embedder.embedder.convolution.weight'
    """
    if library == TIMM:
        return name
    prefix = "resnet." if isinstance(config, ResNetConfig) else "convnext."
    return name if name.startswith((prefix, "classifier.")) else f"{prefix}{name}"


def places(
    config: ConvNetConfig, library: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Place]:
    """The location of each variable in the files.

    Args:
        config: configuration of the network.
        library: `TRANSFORMERS` or `TIMM`.
        shapes: shapes of a `Classifier`'s variables by path.
    """
    table = _table(config, library)
    of_resnet = isinstance(config, ResNetConfig)
    found = {}
    for path, shape in shapes.items():
        name = _name(path, table)
        if not path.endswith("/kernel"):
            found[path] = Place((name,), shape)
        elif len(shape) == 2 and of_resnet and not path.startswith("head/"):
            # It is a 1 x 1 convolution in the file.
            found[path] = Place(
                (name,), (*shape[::-1], 1, 1), from_file=lambda x: x[:, :, 0, 0].T
            )
        elif len(shape) == 2:
            found[path] = Place((name,), shape[::-1], transposed=True)
        else:
            height, width, inputs, outputs = shape
            found[path] = Place(
                (name,),
                (outputs, inputs, height, width),
                from_file=lambda x: x.transpose(2, 3, 1, 0),
            )
    return found


def _table(config: ConvNetConfig, library: str) -> Mapping[str, str]:
    return (_RESNET if isinstance(config, ResNetConfig) else _CONVNEXT)[library]


def _name(path: str, table: Mapping[str, str]) -> str:
    numbers = dict(re.findall(r"(stages|blocks)/(\d+)", path))
    stage, block = int(numbers.get("stages", 0)), int(numbers.get("blocks", 0))
    ours = re.sub(r"stages/\d+", "stages/{s}", path)
    ours = re.sub(r"blocks/\d+", "blocks/{b}", ours)
    if ours in table:
        theirs = table[ours]
    else:
        parent, _, leaf = ours.rpartition("/")
        theirs = f"{table[parent]}.{_LEAVES[leaf]}"
    return theirs.format(s=stage, n=stage + 1, b=block)
