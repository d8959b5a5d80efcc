"""From a configuration of the model to its parts, and to how its data are prepared."""

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
"""Tokens of an answer, where nothing says how many."""


class Kind(NamedTuple):
    """What models of one kind have in common.

    Attributes:
        module: their class.
        sizes: architectures by name.
        losses: that they are trained with.
        rules: their layout on a mesh.
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
    """The kind of an architecture."""
    if isinstance(made, GenerativeConfig):
        return GENERATIVE if made.tower == "vit" else CONV_GENERATIVE
    return CONTRASTIVE


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which model, and which part of it trains.

    Attributes:
        weights: a CLIP, SigLIP or PaliGemma folder of Hugging Face's form, shipped
            weights by name, or a path of our own ones; "" initialises a model of
            ``size``.
        processor: folder whose ``tokenizer.json`` and ``preprocessor_config.json``
            prepare the data; "" for that of ``weights``, for the tokenizer that was
            exported with them (`tokenizer_folder`) or, without either, for the one that
            ships here.
        size: name of an architecture, for a model without weights.
        parts: what a generative model without weights begins as.
        trainable: ``all``, ``lora``, or of a generative model ``decoder``, all but the
            image tower, of which the projection trains, or ``layers``, all but these
            and the token embeddings.
        cache_features: whether the image tower, where it does not train, reads each
            training picture once, and its features are kept in memory.
        lora: the adapters, where ``trainable`` is ``lora``.
        base: ``float``, or ``int8`` for kernels of one byte under adapters.
        loss: ``clip`` or ``siglip``; of a generative model ``captioning``.
        dtype: of the computation, ``float32`` or ``bfloat16``.
        param_dtype: of the parameters, ``float32`` or ``bfloat16``; adapters are
            float32.
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
        """Checks the names, and that nothing in int8 trains."""
        check_name("model.trainable", self.trainable, _TRAINABLE)
        check_name("model.base", self.base, ("float", "int8"))
        check_name("model.loss", self.loss, _LOSSES)
        check_name("model.size", self.size, _SIZES)
        VisionTextConfig(**self.numerics())
        if self.base == "int8" and self.trainable != "lora":
            raise ValueError(
                "model.base='int8' cannot be trained itself; take model.trainable="
                "'lora', or model.base='float'"
            )
        if self.cache_features and self.trainable == "all":
            raise ValueError(
                "model.cache_features=True: the features of an image tower that trains "
                "change; take model.trainable='decoder', 'layers' or 'lora'"
            )

    def numerics(self) -> dict[str, Any]:
        """The fields of an architecture that are set here."""
        return {name: getattr(self, name) for name in ("dtype", "param_dtype", "remat")}

    @property
    def folder(self) -> str:
        """The folder that data are prepared as, "" if there is none."""
        if self.processor:
            return self.processor
        if is_folder(self.weights):
            return self.weights
        exported = tokenizer_folder(self.weights)
        return str(exported) if self.weights and exported.is_dir() else ""


def tokenizer_folder(weights: str) -> Path:
    """Where an export of our own form keeps its tokenizer, if that is not ours.

    >>> tokenizer_folder("runs/mine").as_posix()
    'runs/mine.tokenizer'
    """
    return Path(f"{weights}.tokenizer")


def is_folder(weights: str) -> bool:
    """Whether weights are those of a Hugging Face folder."""
    shipped = weights in pretrained.names()
    return bool(weights) and not shipped and Path(weights).is_dir()


def architecture(config: ModelConfig) -> Architecture:
    """What is known of a model before its weights are read.

    Raises:
        ValueError: if there are no such weights, or they are not trained with such a
            loss.
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
    """Raises ValueError for settings that other models do not have."""
    if isinstance(found, GenerativeConfig):
        return
    for name, given in (
        (f"trainable={config.trainable!r}", config.trainable in _TRAINABLE[2:]),
        ("cache_features=True", config.cache_features),
        (f"parts={config.parts}", config.parts != PartsConfig()),
    ):
        if given:
            raise ValueError(
                f"model.{name} is for models that write answers; "
                f"{config.weights or config.size!r} is none"
            )


class Preprocessing(NamedTuple):
    """How images and texts are prepared for a model.

    Attributes:
        tokenizer: of the captions, or of the answers.
        text_length: S, tokens of one.
        fit: scales pictures.
        prompts: encodes what the model is asked; None of a contrastive one.
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
    """Finds out how data are prepared for a model, without reading its weights.

    Args:
        config: which model.
        text_length: S; None for the model's context, or for 32 tokens of an answer.
        prompt_length: P, tokens of what a generative model is asked.
        prompt: what it is asked about pictures that come without a question.

    Raises:
        ValueError: no tokenizer in the folder, one of another vocabulary than the
            weights', or captions longer than they can be.
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
    """The tokenizer and the fit of a folder, or those that ship here."""
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
        # The folder is a text encoder's and says nothing of pictures.
        return tokenizer, ImageFit(made.image_size)
    how = "crop" if made.class_token else "stretch"
    adapt = config.folder != config.weights
    return tokenizer, read_image_fit(config.folder, made.image_size, how, adapt=adapt)


def _end_id(config: ModelConfig, tokenizer: TextTokenizer) -> int:
    """The token that ends answers of a model that is made for the tokenizer."""
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
    """The NNX filter of ``model.trainable``."""
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
    """Whether a generative model's variable belongs to what gives image features.

    Args:
        path: its keys.

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
        config: which model.
        preprocessing: as `read_preprocessing` found it; a model without weights is made
            for its vocabulary and text length.
        mesh: that a folder's tensors are read straight onto, each device's part alone;
            None for the default device.
        seed: of a model without weights.

    Raises:
        ValueError: if there are no such weights, or they are damaged.
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
    """The architecture of a new model that reads what ``preprocessing`` prepares."""
    tokenizer = preprocessing.tokenizer
    if isinstance(made, GenerativeConfig):
        return dataclasses.replace(
            made,
            decoder=dataclasses.replace(made.decoder, vocab_size=tokenizer.vocab_size),
            pad_id=tokenizer.pad_id,
            end_id=tokenizer.special_ids[-1],
        )
    if made.text.pooling == "end":
        # An empty text begins and ends.
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
    """Loads or initialises the model and puts adapters on it if they are what trains.

    Args:
        config: which model.
        preprocessing: as `read_preprocessing` found it.
        mesh: see `load_weights`.
        seed: of what is initialised.

    Raises:
        ValueError: if there are no such weights, or the LoRA pattern matches nothing.
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
    """What `build_model` gives, with shapes in place of arrays; no weights are read.

    Args:
        config: which model.
        preprocessing: as `read_preprocessing` found it.

    Raises:
        ValueError: if there are no such weights, or the LoRA pattern matches nothing.
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
