"""The architecture of a vision-text model, from its settings or its weights."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from meta_opt.losses.contrastive import LOSSES
from meta_opt.models import generative, huggingface, pretrained, vision_text
from meta_opt.models.generative import Generative, GenerativeConfig
from meta_opt.models.lora import LoRAConfig
from meta_opt.models.vision_text import (
    VisionText,
    VisionTextConfig,
)
from meta_opt.parallel.sharding import (
    CONV_GENERATIVE_RULES,
    GENERATIVE_RULES,
    VISION_TEXT_RULES,
    Rule,
)
from meta_opt.types import check_name
from meta_opt.workloads.pretrained_parts import PartsConfig

Architecture: TypeAlias = VisionTextConfig | GenerativeConfig

_TRAINABLE = ("all", "lora", "decoder", "layers")


class Kind(NamedTuple):
    """A kind of model: contrastive or generative.

    Attributes:
        module: class of these models.
        sizes: their architectures by name.
        losses: names of the losses that can train them.
        rules: their sharding rules.
    """

    module: type[Any]
    sizes: Mapping[str, Architecture]
    losses: tuple[str, ...]
    rules: Sequence[Rule]


CONTRASTIVE = Kind(VisionText, vision_text.SIZES, tuple(LOSSES), VISION_TEXT_RULES)
GENERATIVE = Kind(
    Generative, generative.GENERATIVE_SIZES, ("captioning",), GENERATIVE_RULES
)
CONV_GENERATIVE = GENERATIVE._replace(rules=CONV_GENERATIVE_RULES)
_SIZES: dict[str, Architecture] = {**CONTRASTIVE.sizes, **GENERATIVE.sizes}
_LOSSES = (*CONTRASTIVE.losses, *GENERATIVE.losses)


def kind_of(made: Architecture) -> Kind:
    """Returns the kind of an architecture."""
    if isinstance(made, GenerativeConfig):
        return GENERATIVE if made.tower == "vit" else CONV_GENERATIVE
    return CONTRASTIVE


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model, and which part of it is trained.

    Attributes:
        weights: a CLIP, SigLIP or PaliGemma folder in Hugging Face format, the name of
            shipped weights, or the path of weights in our own format; "" initialises a
            model of ``size``.
        processor: folder with the ``tokenizer.json`` and ``preprocessor_config.json``
            to use; "" for that of ``weights``, else the tokenizer that was exported
            with them (`tokenizer_folder`), else the one of this package.
        size: name of an architecture, for a model without weights.
        parts: pretrained parts of a new generative model.
        trainable: ``all`` or ``lora``; for a generative model also ``decoder`` (all but
            the image tower, whose projection trains) or ``layers`` (as ``decoder``,
            without the token embeddings).
        cache_features: whether a frozen image tower encodes each training image only
            once and its features are kept in memory.
        lora: settings of the adapters if ``trainable`` is ``lora``.
        base: ``float``, or ``int8`` for int8 kernels under the adapters.
        loss: ``clip`` or ``siglip``; ``captioning`` for a generative model.
        dtype: dtype of the computation, ``float32`` or ``bfloat16``.
        param_dtype: dtype of the parameters, ``float32`` or ``bfloat16``; adapters are
            always float32.
        remat: what the backward pass recomputes: ``full``, ``dots`` or ``none``.
    """

    weights: str = "nano"
    processor: str = ""
    size: str = "nano"
    parts: PartsConfig = dataclasses.field(default_factory=PartsConfig)
    trainable: str = "all"
    cache_features: bool = False
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    base: str = "float"
    loss: str = "clip"
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "full"

    def __post_init__(self) -> None:
        """Checks the names, and that no int8 weights or cached features are trained."""
        check_name("model.trainable", self.trainable, _TRAINABLE)
        check_name("model.base", self.base, ("float", "int8"))
        check_name("model.loss", self.loss, _LOSSES)
        check_name("model.size", self.size, _SIZES)
        VisionTextConfig(**self.numerics())
        if self.base == "int8" and self.trainable != "lora":
            raise ValueError(
                "model.base='int8' cannot be trained itself; use model.trainable="
                "'lora', or model.base='float'"
            )
        if self.cache_features and self.trainable == "all":
            raise ValueError(
                "model.cache_features=True: the features of an image tower that trains "
                "change; use model.trainable='decoder', 'layers' or 'lora'"
            )

    def numerics(self) -> dict[str, Any]:
        """Returns the architecture fields that this configuration sets."""
        return {name: getattr(self, name) for name in ("dtype", "param_dtype", "remat")}

    @property
    def folder(self) -> str:
        """Returns the folder of tokenizer and preprocessing; "" if there is none."""
        if self.processor:
            return self.processor
        if is_folder(self.weights):
            return self.weights
        exported = tokenizer_folder(self.weights)
        return str(exported) if self.weights and exported.is_dir() else ""


def tokenizer_folder(weights: str) -> Path:
    """Returns the tokenizer folder of an export in this package's format.

    >>> tokenizer_folder("runs/mine").as_posix()
    'runs/mine.tokenizer'
    """
    return Path(f"{weights}.tokenizer")


def is_folder(weights: str) -> bool:
    """Whether weights are a Hugging Face folder."""
    shipped = weights in pretrained.names()
    return bool(weights) and not shipped and Path(weights).is_dir()


def architecture(config: ModelConfig) -> Architecture:
    """Returns the architecture of a model, without reading its weights.

    Raises:
        ValueError: there are no such weights, or the loss does not apply to them.
    """
    found: Architecture
    if is_folder(config.weights):
        of_folder: Callable[[str], Architecture] = huggingface.read_config
        if huggingface.is_generative(config.weights):
            of_folder = huggingface.read_generative_config
        found = of_folder(config.weights)
    elif config.weights:
        found = pretrained.read_config(config.weights)
    else:
        found = _SIZES[config.size]
        if isinstance(found, GenerativeConfig):
            found = config.parts.architecture(found)
    _check_generative(config, found)
    losses = kind_of(found).losses
    if config.loss not in losses:
        raise ValueError(
            f"model.loss={config.loss!r} is not for {config.weights or config.size!r}: "
            f"take {' or '.join(losses)}"
        )
    return dataclasses.replace(found, **config.numerics())


def _check_generative(config: ModelConfig, found: Architecture) -> None:
    """Raises ValueError for settings that do not apply to the kind of model."""
    if isinstance(found, GenerativeConfig):
        return
    for name, given in (
        (f"trainable={config.trainable!r}", config.trainable in _TRAINABLE[2:]),
        ("cache_features=True", config.cache_features),
        (f"parts={config.parts}", config.parts != PartsConfig()),
    ):
        if given:
            raise ValueError(
                f"model.{name} is for generative models; "
                f"{config.weights or config.size!r} is not one"
            )
