"""Multimodal models, split into trained and frozen parts, and their loss."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from meta_opt.losses.captioning import captioning_loss
from meta_opt.losses.classification import classification_loss
from meta_opt.losses.contrastive import clip_loss, similarity_logits
from meta_opt.models.captioner import CaptionerConfig
from meta_opt.models.fusion import FusionConfig
from meta_opt.models.lora import LoRAConfig, LoRAParam, add_lora
from meta_opt.models.multimodal import HeadsConfig, Multimodal
from meta_opt.types import check_name
from meta_opt.workloads.multimodal_inputs import Inputs
from meta_opt.workloads.readout import set_readout
from meta_opt.workloads.workload import SplitModule, split_module

_ENCODERS = re.compile(r"^encoders/")
_READOUTS = "readouts"
ADAPTED = (
    r"^encoders/.*(attention/(query|key|value|out)|mlp/(up|down)"
    r"|(expand|project|head)/conv)/kernel$"
)
"""Kernels that get adapters: linear layers and pointwise convolutions."""


@dataclasses.dataclass(frozen=True)
class MultimodalModelConfig:
    """The model on top of the encoders, and which part of it is trained.

    Attributes:
        fusion: width and depth of the fusion transformer.
        embed_dim: width of the embeddings for retrieval.
        captioner: caption decoder, whose vocabulary is that of this package's
            tokenizer.
        trainable: what is trained of the encoders: ``all``, adapters (``lora``) or
            nothing (``head``). Projections, fusion and heads are always trained.
        lora: settings of the adapters if ``trainable`` is ``lora``.
        readout: whether a linear regression on the mean features of the pretrained
            encoders, fitted before training and then frozen, is added to the logits or
            scores (`meta_opt.workloads.readout`).
    """

    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)
    embed_dim: int = 64
    captioner: CaptionerConfig = dataclasses.field(default_factory=CaptionerConfig)
    trainable: str = "all"
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    readout: bool = False

    def __post_init__(self) -> None:
        """Checks the name."""
        check_name("model.trainable", self.trainable, ("all", "lora", "head"))


def build_multimodal(
    config: MultimodalModelConfig, inputs: Inputs, seed: int = 0
) -> SplitModule:
    """Builds the model of a task.

    Args:
        config: configuration of the model.
        inputs: inputs with the encoders.
        seed: random seed of the initialisation of fusion, heads and adapters.

    Raises:
        ValueError: adapters match no kernel, or the task has no readout.
    """
    # Compiled as one program: dispatching each operation would be far slower.
    return start_multimodal(
        nnx.jit(model_factory(config, inputs)), config, inputs, seed
    )


def start_multimodal(
    create: Callable[[jax.Array], Multimodal],
    config: MultimodalModelConfig,
    inputs: Inputs,
    seed: int,
) -> SplitModule:
    """Initialises a model, sets its readout, and splits it for training.

    Args:
        create: compiled `model_factory` of the configuration.
        config: configuration of the model.
        inputs: inputs, with a readout if the model has one.
        seed: random seed of the initialisation.
    """
    model = create(jax.random.key(seed))
    if config.readout:
        set_readout(model, inputs)
    return split_multimodal(model, config.trainable)


def model_factory(
    config: MultimodalModelConfig, inputs: Inputs
) -> Callable[[jax.Array], Multimodal]:
    """Returns ``key -> model``; the key initialises fusion, heads and adapters."""
    kind = inputs.kind
    heads = HeadsConfig(
        classes=len(inputs.class_names) if kind == "classify" else 0,
        scores=1 if kind == "score" else 0,
        embed_dim=config.embed_dim if kind == "retrieve" else 0,
        readout=config.readout,
        captioner=dataclasses.replace(
            config.captioner,
            vocab_size=inputs.tokenizer.vocab_size if kind == "caption" else 0,
        ),
    )
    split: Any = nnx.split(nnx.Dict(inputs.encoders))
    graph, arrays = split

    def create(key: jax.Array) -> Multimodal:
        first, second = jax.random.split(key)
        model = Multimodal(
            config.fusion,
            # Creates variables in this trace's scope around the same arrays.
            nnx.merge(graph, jax.tree.map(jnp.asarray, arrays)),
            inputs.modalities,
            heads,
            rngs=nnx.Rngs(params=first),
        )
        if config.trainable == "lora":
            add_lora(model, config.lora, rngs=nnx.Rngs(params=second))
        return model

    return create


def split_multimodal(
    model: nnx.Module, trainable: str, frozen: str = ""
) -> SplitModule:
    """Splits a model with encoders into trained and frozen parts.

    Args:
        model: a model with its encoders under ``encoders``.
        trainable: what is trained of the encoders: ``all``, adapters (``lora``) or
            nothing (``head``).
        frozen: name of an attribute of the model to freeze, besides readouts, which are
            always frozen; "" for none.
    """

    def trains(path: Any, value: Any) -> bool:
        if not isinstance(value, nnx.Param) or path[0] in (frozen, _READOUTS):
            return False
        of_encoder = _ENCODERS.search("/".join(map(str, path))) is not None
        return trainable == "all" or not of_encoder or isinstance(value, LoRAParam)

    return split_module(model, trains)


def multimodal_loss(
    model: Multimodal, batch: dict[str, Any], kind: str
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss and the error rate of a batch.

    The loss is the cross-entropy of classes, the squared error of scores, the symmetric
    contrastive loss of pairs, or the cross-entropy of caption tokens. The error rate is
    that of classes, of the signs of scores, of the nearest text of each image, or of
    tokens.

    Args:
        model: a model with the head for the kind of task.
        batch: arrays [B, ...].
        kind: kind of task, one of `meta_opt.data.samples.KINDS`.

    Returns:
        Loss and error rate, both float32 [].
    """
    if kind == "classify":
        return classification_loss(model.classify(batch), batch["label"])
    if kind == "score":
        found, scores = model.score(batch)[:, 0], batch["score"]
        return jnp.mean((found - scores) ** 2), jnp.mean((found > 0) != (scores > 0))
    if kind == "retrieve":
        image, text = (model.embed(batch, (m,)) for m in ("image", "text"))
        nearest = jnp.argmax(similarity_logits(image, text, 1.0), axis=1)
        wrong = jnp.mean(nearest != jnp.arange(len(nearest)))
        return clip_loss(image, text, model.scale), wrong
    states, embedding, text, real = model.caption_states(batch, batch["caption"])
    found = jnp.argmax(model.captioner.decoder.logits(states), axis=-1)
    wrong = jnp.sum((found != text) & real) / jnp.maximum(jnp.sum(real), 1)
    return captioning_loss(states, embedding, text, real), wrong
