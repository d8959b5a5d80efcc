"""Models with several losses for measuring throughput, with synthetic data.

Clips with texts under UniVL's losses (Luo et al. 2020, arXiv:2002.06353) in three sizes
that run on a CPU, and two large models of images and texts that are only compiled. No
weights or data are read, because the cost of a step does not depend on them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.data.array_batches import array_batches
from meta_opt.losses.captioning import captioning_loss
from meta_opt.losses.contrastive import clip_loss, siglip_loss, similarity_logits
from meta_opt.losses.masked import mask_tokens
from meta_opt.losses.max_margin import max_margin_loss
from meta_opt.models import generative, vision_text
from meta_opt.models.captioner import CaptionerConfig
from meta_opt.models.encoders.minilm import MiniLM, MiniLMConfig
from meta_opt.models.fusion import FusionConfig
from meta_opt.models.generative import Generative, answer_states
from meta_opt.models.lora import LoRAConfig, add_lora
from meta_opt.models.towers import TowerConfig, VisionConfig, VisionTower
from meta_opt.models.video_text import VideoText
from meta_opt.models.vision_text import VisionText
from meta_opt.parallel.sharding import FSDP_RULES, Rule
from meta_opt.types import PyTree, check_name
from meta_opt.workloads.image_text_model import (
    CONTRASTIVE,
    GENERATIVE,
    trainable_filter,
)
from meta_opt.workloads.multimodal_model import ADAPTED
from meta_opt.workloads.video_text_losses import losses_of
from meta_opt.workloads.video_text_model import (
    TargetSizes,
    VideoTextModelConfig,
    heads_for,
    primary_loss_fn,
    split_video_text,
    video_text_losses_fn,
)
from meta_opt.workloads.video_text_outputs import Masking, MaskingConfig
from meta_opt.workloads.workload import (
    Losses,
    LossesFn,
    LossFn,
    SplitModule,
    Workload,
    split_module,
)

_SPECIAL = (0, 1, 2)
"""Token ids of padding, start and end; the next one is the mask's."""
_MASK = 3
_FIRST_WORD = 4


@dataclasses.dataclass(frozen=True)
class ClipModelSize:
    """A model of clips and texts, and the sizes of its clips.

    Attributes:
        text: the text encoder.
        frame: the encoder of single frames.
        image_size: side of a frame in pixels.
        patch_size: side of a patch in pixels.
        fusion: the temporal transformer and the cross encoder; its ``frames`` are T.
        captioner: the decoder.
        text_length: S, tokens of a text.
        words: K, size of the vocabulary of masked words and captions.
    """

    text: MiniLMConfig
    frame: TowerConfig
    image_size: int
    patch_size: int
    fusion: FusionConfig
    captioner: CaptionerConfig
    text_length: int
    words: int


def _clip_size(
    width: int,
    depth: int,
    fusion: Mapping[str, Any],
    frame: TowerConfig,
    *,
    image_size: int,
    patch_size: int,
    vocab_size: int,
    words: int,
    heads: int,
    text_length: int = 12,
) -> ClipModelSize:
    return ClipModelSize(
        text=MiniLMConfig(
            vocab_size=vocab_size,
            text_length=text_length,
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=4 * width,
            remat="none",
        ),
        frame=dataclasses.replace(frame, pooling="none", projection="none"),
        image_size=image_size,
        patch_size=patch_size,
        fusion=FusionConfig(**fusion, remat="none"),
        captioner=CaptionerConfig(width=fusion["width"], depth=fusion["depth"]),
        text_length=text_length,
        words=words,
    )


CLIP_SIZES: Mapping[str, ClipModelSize] = MappingProxyType(
    {
        "nano": _clip_size(
            64,
            2,
            {"width": 64, "depth": 1, "mlp_width": 256, "frames": 4},
            TowerConfig(width=64, depth=2, heads=2, mlp_width=256),
            image_size=32,
            patch_size=8,
            vocab_size=512,
            words=256,
            heads=2,
        ),
        "small": _clip_size(
            128,
            4,
            {"width": 128, "depth": 2, "mlp_width": 512, "frames": 8},
            TowerConfig(width=128, depth=4, heads=4, mlp_width=512),
            image_size=32,
            patch_size=8,
            vocab_size=2048,
            words=1024,
            heads=4,
        ),
        # MiniLM's own size; the frames' is DeiT-Ti's.
        "base": _clip_size(
            384,
            6,
            {"width": 256, "depth": 2, "mlp_width": 1024, "frames": 8},
            TowerConfig(width=192, depth=12, heads=3, mlp_width=768),
            image_size=64,
            patch_size=16,
            vocab_size=30_522,
            words=2048,
            heads=12,
        ),
    }
)
"""Models of clips and texts by name."""

LARGE = ("So400m/14", "3B/14")
"""Models of images and texts that are only compiled: SigLIP's and PaliGemma's
architectures (`meta_opt.models.vision_text`, `meta_opt.models.generative`)."""

MODELS = (*CLIP_SIZES, *LARGE)
"""Names for `make_subject`."""


class Subject(NamedTuple):
    """A model with its losses.

    Attributes:
        create: from a key to the model, for tracing.
        split: from a model, abstract or not, to its parts.
        names: of the T losses, the primary one first.
        losses_fn: from the parts to `LossesFn`.
        primary_fn: from the parts to the primary loss alone.
        batch: ``(generator, B) -> arrays [B, ...]``.
        rules: layout on a mesh.
    """

    create: Callable[[jax.Array], nnx.Module]
    split: Callable[[Any], SplitModule]
    names: tuple[str, ...]
    losses_fn: Callable[[SplitModule], LossesFn]
    primary_fn: Callable[[SplitModule], LossFn]
    batch: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    rules: Sequence[Rule] = FSDP_RULES

    def workload(self, *, concrete: bool, examples: int = 0) -> Workload:
        """The model as a workload.

        Args:
            concrete: whether its arrays are concrete; otherwise abstract.
            examples: N, size of the data for training and of those for meta-steps.
        """
        create = self.create
        key = jax.random.key(0)
        model = nnx.jit(create)(key) if concrete else nnx.eval_shape(create, key)
        module = self.split(model)
        data = self.batch(np.random.default_rng(0), examples)
        batches = partial(array_batches, data)
        return Workload(
            params=module.params,
            frozen=module.frozen,
            loss_fn=self.primary_fn(module),
            train_batches=batches,
            meta_batches=batches,
            losses=Losses(self.names, self.names[0], self.losses_fn(module)),
            rules=self.rules,
        )


def loss_names(model: str) -> tuple[str, ...]:
    """All losses of a model, the primary one first.

    Models of clips have UniVL's losses for retrieval. For ``So400m/14`` the losses on
    the same two vectors come first; the last one runs the text tower again on captions
    with masked tokens. The second loss of ``3B/14`` runs the decoder again on answers
    with masked tokens; the vision tower runs once.

    Raises:
        ValueError: an unknown model.

    >>> loss_names("So400m/14")
    ('siglip', 'clip', 'max_margin', 'masked_siglip')
    """
    check_name("model", model, MODELS)
    if model == "So400m/14":
        return tuple(_IMAGE_TEXT_LOSSES)
    if model == "3B/14":
        return ("captioning", "masked_captioning")
    names, primary = losses_of("univl", "retrieval")
    return (primary, *(name for name in names if name != primary))


def make_subject(model: str, num_losses: int, trainable: str = "all") -> Subject:
    """A model with its first T losses.

    Args:
        model: one of `MODELS`.
        num_losses: T.
        trainable: ``all``, or ``lora``: adapters of rank 8 on the encoders' kernels; in
            models of clips fusion and heads train too.

    Raises:
        ValueError: an unknown name, or more losses than the model has.
    """
    every = loss_names(model)
    check_name("trainable", trainable, ("all", "lora"))
    if not 1 <= num_losses <= len(every):
        raise ValueError(
            f"num_losses={num_losses}: {model} has {len(every)} losses, "
            f"{', '.join(every)}; take 1 to {len(every)}"
        )
    names = every[:num_losses]
    if model == "So400m/14":
        return _image_text(names, trainable)
    if model == "3B/14":
        return _captioning(names, trainable)
    return _clips(CLIP_SIZES[model], names, trainable)


class _FrameEncoder(nnx.Module):
    """A vision tower as an encoder of patch features."""

    def __init__(self, size: ClipModelSize, *, rngs: nnx.Rngs) -> None:
        self.config = size.frame
        self.tower = VisionTower(
            VisionConfig(
                image_size=size.image_size,
                patch_size=size.patch_size,
                vision=size.frame,
                remat="none",
            ),
            size.frame.width,
            rngs=rngs,
        )

    def tokens(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.tower.features(inputs)
        return x, jnp.ones(x.shape[:2], bool)


def _clips(size: ClipModelSize, names: tuple[str, ...], trainable: str) -> Subject:
    config = VideoTextModelConfig(
        size.fusion, captioner=size.captioner, trainable=trainable
    )
    sizes = TargetSizes(
        words=size.words, codes=0, frame=size.frame.width, answers=0, end_id=2
    )
    heads = heads_for(names, config, sizes)
    masking = Masking(MaskingConfig(), _MASK, _SPECIAL, size.text.vocab_size)

    def create(key: jax.Array) -> VideoText:
        rngs = nnx.Rngs(params=key)
        encoders = {
            "image": _FrameEncoder(size, rngs=rngs),
            "text": MiniLM(size.text, rngs=rngs),
        }
        model = VideoText(size.fusion, encoders, heads, rngs=rngs)
        if trainable == "lora":
            add_lora(model, LoRAConfig(ADAPTED, rank=8), rngs=rngs)
        return model

    def batch(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        frames = (count, size.fusion.frames)
        side = size.image_size
        text = _tokens(rng, (count, size.text_length), size.text.vocab_size)
        words = _tokens(rng, text.shape, size.words)
        targets = rng.normal(size=(*frames, size.frame.width)).astype(np.float32)
        return {
            "frames": rng.integers(0, 256, (*frames, side, side, 3), np.uint8),
            "present": np.ones(frames, bool),
            "clip": np.arange(count, dtype=np.int32),
            "targets": targets / np.linalg.norm(targets, axis=-1, keepdims=True),
            "text": text,
            "text_features": text,
            "words": words,
            "caption": words[:, 1:],
        }

    return Subject(
        create,
        lambda model: split_video_text(model, trainable),
        names,
        lambda module: video_text_losses_fn(module, names, masking),
        lambda module: primary_loss_fn(module, names[0], masking),
        batch,
    )


_LARGE_NUMERICS = {"dtype": "bfloat16", "remat": "full"}
_LARGE_LORA = LoRAConfig(r"attention/(query|value)/kernel$", rank=8, alpha=16.0)


def _image_text(names: tuple[str, ...], trainable: str) -> Subject:
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
                    key, jnp.asarray(batch["text"]), _MASK, config.vocab_size, _SPECIAL
                )
                read = model.encode_text(hidden)
            found.append(_IMAGE_TEXT_LOSSES[name](image, read, scale, bias))
        return found

    def batch(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        side, length = config.image_size, config.text_length
        return {
            "image": _pixels(rng, (count, side, side, 3)),
            "text": _tokens(rng, (count, length), config.vocab_size),
        }

    create = partial(_create_large, VisionText, config, trainable)
    return _of_each(create, names, trainable, each, batch, CONTRASTIVE.rules)


_IMAGE_TEXT_LOSSES: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {
        "siglip": siglip_loss,
        "clip": clip_loss,
        "max_margin": lambda image, text, scale, bias: max_margin_loss(
            similarity_logits(image, text, 1.0)
        ),
        "masked_siglip": siglip_loss,
    }
)


def _captioning(names: tuple[str, ...], trainable: str) -> Subject:
    config = generative.named_config("3B/14", **_LARGE_NUMERICS)
    length = 32

    def each(
        model: Generative, batch: Mapping[str, Any], key: jax.Array, losses: Any
    ) -> list[jax.Array]:
        text = jnp.asarray(batch["text"])
        hidden, _ = mask_tokens(key, text, _MASK, config.decoder.vocab_size, _SPECIAL)
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
            "image": _pixels(rng, (count, side, side, 3)),
            "prompt": _tokens(rng, (count, length), size),
            "text": _tokens(rng, (count, length), size),
        }

    create = partial(_create_large, Generative, config, trainable)
    return _of_each(create, names, trainable, each, batch, GENERATIVE.rules)


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
    """A subject from ``each(model, batch, key, names of losses) -> losses``."""

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


def _tokens(rng: np.random.Generator, shape: tuple[int, ...], size: int) -> np.ndarray:
    return rng.integers(_FIRST_WORD, size, shape).astype(np.int32)


def _pixels(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 256, shape, np.uint8)
