"""Vision-text models and their preprocessing, built from a configuration."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
from flax import nnx
from jax.sharding import Mesh

from meta_opt.data.pipeline import EncodePrompts
from meta_opt.data.preprocessing.answers import AnswerTokenizer
from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
from meta_opt.data.preprocessing.image_fit import ImageFit, read_image_fit
from meta_opt.data.preprocessing.tokenizer import TextTokenizer, load_tokenizer
from meta_opt.losses.contrastive import LOSSES
from meta_opt.models import generative, huggingface, pretrained, vision_text
from meta_opt.models.generative import Generative, GenerativeConfig
from meta_opt.models.int8 import quantise_base
from meta_opt.models.lora import LoRAConfig, LoRAParam, add_lora
from meta_opt.models.vision_text import (
    VisionText,
    VisionTextConfig,
    parameter_count,
)
from meta_opt.parallel.sharding import (
    CONV_GENERATIVE_RULES,
    GENERATIVE_RULES,
    VISION_TEXT_RULES,
    Rule,
    parameter_shardings,
)
from meta_opt.types import PyTree, check_name
from meta_opt.workloads.pretrained_parts import PartsConfig
from meta_opt.workloads.workload import SplitModule, split_module

_log = logging.getLogger(__name__)

Architecture: TypeAlias = VisionTextConfig | GenerativeConfig
Module: TypeAlias = VisionText | Generative

_TRAINABLE = ("all", "lora", "decoder", "layers")
_TOKENS = ("decoder", "tokens")
_ANSWER_LENGTH = 32
"""Default number of tokens of an answer."""


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


class Preprocessing(NamedTuple):
    """The preprocessing of images and texts for a model.

    Attributes:
        tokenizer: tokenizer of captions or answers.
        text_length: S, number of tokens of a caption or answer.
        fit: scales images.
        prompts: encodes prompts; None for a contrastive model.
    """

    tokenizer: TextTokenizer
    text_length: int
    fit: ImageFit
    prompts: EncodePrompts | None = None


def read_preprocessing(
    config: ModelConfig,
    text_length: int | None = None,
    prompt_length: int = 32,
    prompt: str = "",
) -> Preprocessing:
    """Reads the preprocessing of a model, without reading its weights.

    Args:
        config: the model.
        text_length: S; None for the model's context length, or 32 tokens for answers.
        prompt_length: P, number of tokens of a generative model's prompt.
        prompt: default prompt of a generative model.

    Raises:
        ValueError: the folder has no tokenizer, its vocabulary is not that of the
            weights, or the text length is above the model's.
    """
    made = architecture(config)
    tokenizer, fit = _tokenizer_and_fit(config, made)
    if isinstance(made, GenerativeConfig):
        end = made.end_id if config.weights else _end_id(config, tokenizer)
        answers = AnswerTokenizer(
            tokenizer, end, tokenizer.pad_id, prompt_length, prompt
        )
        length = text_length or _ANSWER_LENGTH
        return Preprocessing(answers, length, fit, answers.encode_prompts)
    length = text_length or made.text_length
    if config.weights:
        _check_end(config, made, tokenizer)
        _check_length(config, made, length)
    return Preprocessing(tokenizer, length, fit)


def _tokenizer_and_fit(
    config: ModelConfig, made: Architecture
) -> tuple[TextTokenizer, ImageFit]:
    """Returns the tokenizer and image fit of a folder, or those of this package."""
    known = (
        made.decoder.vocab_size
        if isinstance(made, GenerativeConfig)
        else made.vocab_size
    )
    if not config.folder:
        ours = load_tokenizer()
        if config.weights and known != ours.vocab_size:
            raise ValueError(
                f"the weights {config.weights!r} are for {known} tokens, the "
                f"tokenizer that ships here has {ours.vocab_size}, and there is no "
                f"{tokenizer_folder(config.weights)}: name the folder with theirs in "
                "model.processor"
            )
        return ours, ImageFit(made.image_size)
    tokenizer = FolderTokenizer(config.folder, made.pad_id)
    if config.weights and tokenizer.vocab_size > known:
        raise ValueError(
            f"the weights {config.weights!r} are for {known} tokens and the tokenizer "
            f"of {config.folder} has {tokenizer.vocab_size}"
        )
    if isinstance(made, GenerativeConfig) and made.tower != "vit":
        # The folder of a text encoder has no image preprocessing.
        return tokenizer, ImageFit(made.image_size)
    how = "crop" if made.class_token else "stretch"
    adapt = config.folder != config.weights
    return tokenizer, read_image_fit(config.folder, made.image_size, how, adapt=adapt)


def _end_id(config: ModelConfig, tokenizer: TextTokenizer) -> int:
    """Returns the token that ends the answers of a new model."""
    if not tokenizer.special_ids:
        raise ValueError(
            f"the tokenizer of {config.folder} adds no token that ends a text, and a "
            "new model must learn one; name another in model.processor"
        )
    return tokenizer.special_ids[-1]


def _check_end(
    config: ModelConfig, made: VisionTextConfig, tokenizer: TextTokenizer
) -> None:
    if not config.folder or made.text.pooling != "end":
        return
    if made.end_id not in tokenizer.special_ids:
        raise ValueError(
            f"the weights {config.weights!r} read a caption at its end token "
            f"{made.end_id}, and the tokenizer of {config.folder} adds "
            f"{list(tokenizer.special_ids)}"
        )


def _check_length(config: ModelConfig, made: VisionTextConfig, length: int) -> None:
    if length > made.text_length:
        raise ValueError(
            f"the weights {config.weights!r} are for captions up to {made.text_length} "
            f"tokens; pipeline.text_length={length} is more"
        )
    if made.text.pooling == "last" and length != made.text_length:
        raise ValueError(
            f"the weights {config.weights!r} read a caption at the last of "
            f"{made.text_length} places; pipeline.text_length={length} must be that "
            "or None"
        )


def trainable_filter(trainable: str) -> Any:
    """Returns the NNX filter for ``model.trainable``."""
    match trainable:
        case "lora":
            return LoRAParam
        case "decoder":
            return nnx.All(nnx.Param, lambda path, _: not in_tower(path))
        case "layers":
            return nnx.All(
                nnx.Param,
                lambda path, _: not in_tower(path) and path[:2] != _TOKENS,
            )
        case _:
            return nnx.Param


def in_tower(path: Sequence[Any]) -> bool:
    """Whether a variable of a generative model is in the image tower's encoder.

    Args:
        path: keys of the variable in the model.

    >>> in_tower(("vision", "patches", "kernel"))
    True
    >>> in_tower(("vision", "projection", "kernel"))
    False
    """
    return path[0] == "vision" and path[1] != "projection"


def load_weights(
    config: ModelConfig,
    preprocessing: Preprocessing,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> Module:
    """Loads or initialises the model without adapters.

    Args:
        config: the model.
        preprocessing: result of `read_preprocessing`; a model without weights gets its
            vocabulary and text length.
        mesh: mesh whose shards the tensors of a folder are read into; None for the
            default device.
        seed: random seed of a model without weights.

    Raises:
        ValueError: weights are missing or damaged.
    """
    made = architecture(config)
    kind = kind_of(made)
    if is_folder(config.weights):

        def place(params: PyTree) -> PyTree:
            assert mesh is not None
            return parameter_shardings(kind.rules, mesh, params)[0]

        shardings = None if mesh is None else place
        load: Callable[..., Module] = huggingface.load
        if kind is not CONTRASTIVE:
            load = huggingface.load_generative
        return load(config.weights, shardings, **config.numerics())
    if config.weights:
        return pretrained.load(config.weights, **config.numerics())
    fitted = _made_for(made, preprocessing)
    if isinstance(fitted, GenerativeConfig):
        return config.parts.build(fitted, seed)
    return nnx.jit(lambda: kind.module(fitted, rngs=nnx.Rngs(seed)))()


def _made_for(made: Architecture, preprocessing: Preprocessing) -> Architecture:
    """Returns the architecture of a new model for this preprocessing."""
    tokenizer = preprocessing.tokenizer
    if isinstance(made, GenerativeConfig):
        return dataclasses.replace(
            made,
            decoder=dataclasses.replace(made.decoder, vocab_size=tokenizer.vocab_size),
            pad_id=tokenizer.pad_id,
            end_id=tokenizer.special_ids[-1],
        )
    if made.text.pooling == "end":
        # An empty text is encoded as a start and an end token.
        end = int(tokenizer.encode([""], preprocessing.text_length)[0, 1])
        made = dataclasses.replace(made, end_id=end)
    return dataclasses.replace(
        made,
        vocab_size=tokenizer.vocab_size,
        text_length=preprocessing.text_length,
        pad_id=tokenizer.pad_id,
    )


def build_model(
    config: ModelConfig,
    preprocessing: Preprocessing,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> SplitModule:
    """Loads or initialises the model, and adds adapters if they are trained.

    Args:
        config: the model.
        preprocessing: result of `read_preprocessing`.
        mesh: see `load_weights`.
        seed: random seed of initialised parameters.

    Raises:
        ValueError: there are no such weights, or the LoRA pattern matches nothing.
    """
    model = load_weights(config, preprocessing, mesh, seed)
    count = parameter_count(model)
    if config.trainable == "lora":
        _log.info("%s", add_lora(model, config.lora, rngs=nnx.Rngs(seed)))
    if config.base == "int8":
        _log.info("%s", quantise_base(model))
    split = split_module(model, trainable_filter(config.trainable))
    if config.trainable != "lora":
        trained = sum(x.size for x in jax.tree.leaves(split.params))
        _log.info("%s of %s parameters train", f"{trained:,}", f"{count:,}")
    return split


def model_structure(config: ModelConfig, preprocessing: Preprocessing) -> SplitModule:
    """Returns the model of `build_model` with abstract arrays; reads no weights.

    Args:
        config: the model.
        preprocessing: result of `read_preprocessing`.

    Raises:
        ValueError: there are no such weights, or the LoRA pattern matches nothing.
    """
    made = architecture(config)
    if not config.weights:
        made = _made_for(made, preprocessing)

    def build() -> Module:
        model: Module = kind_of(made).module(made, rngs=nnx.Rngs(0))
        if config.trainable == "lora":
            add_lora(model, config.lora, rngs=nnx.Rngs(0))
        if config.base == "int8":
            quantise_base(model)
        return model

    return split_module(nnx.eval_shape(build), trainable_filter(config.trainable))
