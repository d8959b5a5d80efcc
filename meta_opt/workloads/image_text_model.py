"""Vision-text models, loaded or initialised, and split into their parts."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from flax import nnx
from jax.sharding import Mesh

from meta_opt.models import huggingface, pretrained
from meta_opt.models.generative import Generative, GenerativeConfig
from meta_opt.models.int8 import quantise_base
from meta_opt.models.lora import LoRAParam, add_lora
from meta_opt.models.vision_text import (
    VisionText,
    parameter_count,
)
from meta_opt.parallel.sharding import (
    parameter_shardings,
)
from meta_opt.types import PyTree
from meta_opt.workloads.image_text_architecture import (
    Architecture,
    ModelConfig,
    architecture,
    is_folder,
    kind_of,
)
from meta_opt.workloads.image_text_preprocessing import Preprocessing
from meta_opt.workloads.workload import SplitModule, split_module

_log = logging.getLogger(__name__)

Module: TypeAlias = VisionText | Generative

_TOKENS = ("decoder", "tokens")


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
        if isinstance(made, GenerativeConfig):
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
