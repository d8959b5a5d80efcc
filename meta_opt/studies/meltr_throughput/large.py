"""Large image-text models with several losses, which are only compiled."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.losses.captioning import captioning_loss
from meta_opt.losses.contrastive import clip_loss, siglip_loss, similarity_logits
from meta_opt.losses.masked import mask_tokens
from meta_opt.losses.max_margin import max_margin_loss
from meta_opt.models import generative, vision_text
from meta_opt.models.generative import Generative, answer_states
from meta_opt.models.lora import LoRAConfig, add_lora
from meta_opt.models.vision_text import VisionText
from meta_opt.parallel.sharding import Rule
from meta_opt.studies.meltr_throughput.subject import (
    MASK,
    SPECIAL,
    Subject,
    random_pixels,
    random_tokens,
)
from meta_opt.types import PyTree
from meta_opt.workloads.image_text_architecture import CONTRASTIVE, GENERATIVE
from meta_opt.workloads.image_text_model import trainable_filter
from meta_opt.workloads.workload import (
    LossesFn,
    LossFn,
    SplitModule,
    split_module,
)

_LARGE_NUMERICS = {"dtype": "bfloat16", "remat": "full"}
_LARGE_LORA = LoRAConfig(r"attention/(query|value)/kernel$", rank=8, alpha=16.0)


def image_text(names: tuple[str, ...], trainable: str) -> Subject:
    """Returns SigLIP So400m/14 with some of `IMAGE_TEXT_LOSSES`, in bfloat16.

    Args:
        names: names of the losses, the primary one first.
        trainable: ``all`` or ``lora``.
    """
    config = vision_text.named_config("So400m/14", **_LARGE_NUMERICS)

    def each(
        model: VisionText, batch: Mapping[str, Any], key: jax.Array, losses: Any
    ) -> list[jax.Array]:
        image, text, scale, bias = model(dict(batch))
        found = []
        for name in losses:
            read = text
            if name == "masked_siglip":
                hidden, _ = mask_tokens(
                    key, jnp.asarray(batch["text"]), MASK, config.vocab_size, SPECIAL
                )
                read = model.encode_text(hidden)
            found.append(IMAGE_TEXT_LOSSES[name](image, read, scale, bias))
        return found

    def batch(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        side, length = config.image_size, config.text_length
        return {
            "image": random_pixels(rng, (count, side, side, 3)),
            "text": random_tokens(rng, (count, length), config.vocab_size),
        }

    create = partial(_create_large, VisionText, config, trainable)
    return _of_each(create, names, trainable, each, batch, CONTRASTIVE.rules)


IMAGE_TEXT_LOSSES: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {
        "siglip": siglip_loss,
        "clip": clip_loss,
        "max_margin": lambda image, text, scale, bias: max_margin_loss(
            similarity_logits(image, text, 1.0)
        ),
        "masked_siglip": siglip_loss,
    }
)


def captioning(names: tuple[str, ...], trainable: str) -> Subject:
    """Returns PaliGemma 3B/14 with some of `CAPTION_LOSSES`, in bfloat16.

    Args:
        names: names of the losses, the primary one first.
        trainable: ``all`` or ``lora``.
    """
    config = generative.named_config("3B/14", **_LARGE_NUMERICS)
    length = 32

    def each(
        model: Generative, batch: Mapping[str, Any], key: jax.Array, losses: Any
    ) -> list[jax.Array]:
        text = jnp.asarray(batch["text"])
        hidden, _ = mask_tokens(key, text, MASK, config.decoder.vocab_size, SPECIAL)
        read = {"captioning": text, "masked_captioning": hidden}
        prefix = model.prefix(batch["image"], batch["prompt"])
        embedding = model.decoder.tokens.embedding[...]
        real = text != config.pad_id
        return [
            captioning_loss(
                answer_states(model.decoder, prefix, read[name], config.pad_id),
                *(embedding, text, real),
            )
            for name in losses
        ]

    def batch(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        side, size = config.image_size, config.decoder.vocab_size
        return {
            "image": random_pixels(rng, (count, side, side, 3)),
            "prompt": random_tokens(rng, (count, length), size),
            "text": random_tokens(rng, (count, length), size),
        }

    create = partial(_create_large, Generative, config, trainable)
    return _of_each(create, names, trainable, each, batch, GENERATIVE.rules)


CAPTION_LOSSES = ("captioning", "masked_captioning")


def _create_large(
    module: type[Any], config: Any, trainable: str, key: jax.Array
) -> nnx.Module:
    rngs = nnx.Rngs(params=key)
    model = module(config, rngs=rngs)
    if trainable == "lora":
        add_lora(model, _LARGE_LORA, rngs=rngs)
    return model


def _of_each(
    create: Callable[[jax.Array], nnx.Module],
    names: tuple[str, ...],
    trainable: str,
    each: Callable[[Any, Mapping[str, Any], jax.Array, Any], list[jax.Array]],
    batch: Callable[[np.random.Generator, int], dict[str, np.ndarray]],
    rules: Sequence[Rule],
) -> Subject:
    """Returns a subject from ``each(model, batch, key, names of losses) -> losses``."""

    def losses_fn(module: SplitModule) -> LossesFn:
        def losses(
            params: PyTree, frozen: PyTree, batch: PyTree, rng: jax.Array
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            return jnp.stack(each(module.merge(params, frozen), batch, rng, names)), {}

        return losses

    def primary_fn(module: SplitModule) -> LossFn:
        def loss(
            params: PyTree, frozen: PyTree, batch: PyTree, rng: jax.Array
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            model = module.merge(params, frozen)
            return each(model, batch, rng, names[:1])[0], {}

        return loss

    return Subject(
        create,
        lambda model: split_module(model, trainable_filter(trainable)),
        names,
        losses_fn,
        primary_fn,
        batch,
        rules,
    )
