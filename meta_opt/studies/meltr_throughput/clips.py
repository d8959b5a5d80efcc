"""Models of clips and texts under UniVL's losses, in sizes that run on a CPU.

Luo et al. 2020, arXiv:2002.06353.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models.captioner import CaptionerConfig
from meta_opt.models.encoders.minilm import MiniLM, MiniLMConfig
from meta_opt.models.fusion import FusionConfig
from meta_opt.models.lora import LoRAConfig, add_lora
from meta_opt.models.towers import TowerConfig, VisionConfig, VisionTower
from meta_opt.models.video_text import VideoText
from meta_opt.studies.meltr_throughput.subject import (
    MASK,
    SPECIAL,
    Subject,
    random_pixels,
    random_tokens,
)
from meta_opt.workloads.multimodal_model import ADAPTED
from meta_opt.workloads.video_text_model import (
    TargetSizes,
    VideoTextModelConfig,
    heads_for,
    primary_loss_fn,
    split_video_text,
    video_text_losses_fn,
)
from meta_opt.workloads.video_text_outputs import Masking, MaskingConfig


@dataclasses.dataclass(frozen=True)
class ClipModelSize:
    """Sizes of a model of clips and texts and of its inputs.

    Attributes:
        text: the text encoder.
        frame: the encoder of single frames.
        image_size: side of a frame in pixels.
        patch_size: side of a patch in pixels.
        fusion: temporal transformer and cross encoder; ``frames`` is the number of
            frames of a clip.
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
        # The text encoder has MiniLM's size, the frame encoder DeiT-Ti's.
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


class _FrameEncoder(nnx.Module):
    """Wraps a vision tower as an encoder of patch features."""

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


def clips(size: ClipModelSize, names: tuple[str, ...], trainable: str) -> Subject:
    """Returns a model of clips with some of UniVL's losses.

    Args:
        size: one of `CLIP_SIZES`.
        names: names of the losses, the primary one first.
        trainable: ``all``, or ``lora``: adapters, fusion and heads.
    """
    config = VideoTextModelConfig(
        size.fusion, captioner=size.captioner, trainable=trainable
    )
    sizes = TargetSizes(
        words=size.words, codes=0, frame=size.frame.width, answers=0, end_id=2
    )
    heads = heads_for(names, config, sizes)
    masking = Masking(MaskingConfig(), MASK, SPECIAL, size.text.vocab_size)

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
        text = random_tokens(rng, (count, size.text_length), size.text.vocab_size)
        words = random_tokens(rng, text.shape, size.words)
        targets = rng.normal(size=(*frames, size.frame.width)).astype(np.float32)
        return {
            "frames": random_pixels(rng, (*frames, side, side, 3)),
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
