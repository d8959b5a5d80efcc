"""Task families on pretrained encoders: large models, about eight epochs, few samples.

The last layers of the encoders (all parameters or adapters) are trained with a new
fusion transformer and head. The data sets are those of meta-training.
"""

import functools

import jax
import jax.numpy as jnp

from meta_opt.data.sources.multimodal import FOR_META_TRAINING
from meta_opt.models.captioner import CaptionerConfig
from meta_opt.models.fusion import FusionConfig
from meta_opt.models.lora import LoRAConfig
from meta_opt.models.towers import STACKED
from meta_opt.tasks.task import Arrays, BuildTask, Splits, Task
from meta_opt.types import PyTree
from meta_opt.workloads.multimodal_inputs import InputsConfig, read_inputs
from meta_opt.workloads.multimodal_model import (
    ADAPTED,
    MultimodalModelConfig,
    build_multimodal,
    model_factory,
    multimodal_loss,
    split_multimodal,
)

_HELD_OUT = 150
"""Maximum number of validation examples, and of test examples."""


def encoder_task(
    name: str,
    data_dir: str | None,
    *,
    width: int = 128,
    train: int = 600,
    batch: int = 32,
    trainable: str = "all",
    horizons: tuple[int, int] = (20, 150),
    value: bool = True,
) -> Task:
    """Returns a task whose model contains pretrained encoders.

    Args:
        name: name of a task in `meta_opt.data.sources.multimodal.FOR_META_TRAINING`.
        data_dir: folder of prepared datasets and encoders; None for the default.
        width: D, width of the fusion transformer.
        train: maximum number of training examples.
        batch: B, batch size.
        trainable: ``all`` or ``lora``.
        horizons: smallest and largest number of inner steps.
        value: whether the loss is passed to the optimizer.

    Raises:
        MissingDataError: a dataset or encoder that is not prepared.
    """
    inputs = read_inputs(
        InputsConfig(
            name,
            data_dir or "",
            max_examples=train,
            text_length=8,
            trainable_layers={"image": 1, "text": 1, "audio": 1},
            pool_size={"audio": 4},
        )
    )
    config = MultimodalModelConfig(
        FusionConfig(width=width, mlp_width=4 * width, heads=4, remat="none"),
        captioner=CaptionerConfig(width=width),
        trainable=trainable,
        lora=LoRAConfig(ADAPTED),
    )
    create, module = model_factory(config, inputs), build_multimodal(config, inputs)

    def init(key: jax.Array) -> PyTree:
        return split_multimodal(create(key), trainable).params

    def loss(params: PyTree, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        return multimodal_loss(module.merge(params, module.frozen), arrays, inputs.kind)

    def cut(split: str, most: int) -> Arrays:
        arrays = inputs.splits[split]
        return jax.tree.map(lambda x: jnp.asarray(x[:most]), arrays)

    return Task(
        name=name,
        dataset=FOR_META_TRAINING[name].dataset,
        init=init,
        loss=loss,
        splits=Splits(
            cut("train", train), cut("validation", _HELD_OUT), cut("test", _HELD_OUT)
        ),
        batch_size=batch,
        stacked=STACKED,
        provides_loss=value,
        horizons=horizons,
    )


ENCODER_FAMILIES: dict[str, BuildTask] = {
    "emoji_encoders": functools.partial(encoder_task, "emoji_pictures"),
    "emoji_encoders_lora": functools.partial(
        encoder_task, "emoji_pictures", trainable="lora"
    ),
    "emoji_encoder_pairs": functools.partial(encoder_task, "emoji_pairs"),
    "emoji_encoder_names": functools.partial(encoder_task, "emoji_names"),
    "emoji_encoder_names_lora": functools.partial(
        encoder_task, "emoji_names", trainable="lora"
    ),
    "klettres_encoder": functools.partial(encoder_task, "klettres_language"),
    "klettres_encoder_lora": functools.partial(
        encoder_task, "klettres_language", trainable="lora"
    ),
    "klettres_encoder_texts": functools.partial(encoder_task, "klettres_text"),
    "klettres_encoder_texts_lora": functools.partial(
        encoder_task, "klettres_text", trainable="lora"
    ),
}
"""Functions from a data folder to a task, by family name."""
