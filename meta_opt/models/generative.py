"""A model that writes about an image: an image tower in front of a decoder.

PaliGemma's architecture (Beyer et al. 2024, arXiv:2407.07726): SigLIP's patches, or the
grid of a convolutional network, are projected to the decoder's width and stand before
the tokens of a prompt. These two, the prefix, read each other freely; the tokens of the
answer read the prefix and those of the answer before them.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models.conv_tower import (
    CONVNETS,
    ConvTower,
    ImageTower,
    pixels_a_feature,
)
from meta_opt.models.decoder import Decoder, DecoderConfig
from meta_opt.models.settings import check_names
from meta_opt.models.towers import TowerConfig, VisionConfig, VisionTower
from meta_opt.types import Batch, near_match


@dataclasses.dataclass(frozen=True)
class GenerativeConfig(VisionConfig):
    """Architecture and numerics of `Generative`; the defaults: ``nano-generative``.

    Attributes:
        tower: what reads images: ``vit``, the vision tower, or a convolutional one of
            `meta_opt.models.conv_tower.CONVNETS`, whose ``patch_size`` is the pixels
            that a feature stands for and which does not read ``vision`` and the fields
            of its patches and channels.
        vision: the vision tower, without pooling; its projection is to the decoder's
            width.
        decoder: the decoder.
        pad_id: token of the padding.
        end_id: token that ends an answer.
        image_id: token that stands for a patch in Transformers, where patches are among
            the tokens; -1 for one beyond the vocabulary. It is not read here.
    """

    tower: str = "vit"
    vision: TowerConfig = dataclasses.field(
        default_factory=lambda: TowerConfig(
            width=64,
            depth=2,
            mlp_width=256,
            pooling="none",
            projection="linear_bias",
        )
    )
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    pad_id: int = 0
    end_id: int = 3
    image_id: int = -1

    def __post_init__(self) -> None:
        """Raises ValueError for inconsistent sizes and unknown names."""
        super().__post_init__()
        check_names(self, tower=("vit", *CONVNETS))
        if self.tower in CONVNETS and self.patch_size != pixels_a_feature(self.tower):
            raise ValueError(
                f"patch_size={self.patch_size} must be the "
                f"{pixels_a_feature(self.tower)} pixels that a feature of "
                f"{self.tower} stands for"
            )
        if self.vision.pooling != "none" or self.class_token:
            raise ValueError(
                f"the decoder reads all patches and nothing else: pooling="
                f"{self.vision.pooling!r} must be 'none' and class_token="
                f"{self.class_token} False"
            )
        if self.vision.projection == "none" and self.vision.width != self.decoder.width:
            raise ValueError(
                f"the vision tower has no projection and width {self.vision.width}, "
                f"which must be the decoder's, {self.decoder.width}"
            )
        for name in ("pad_id", "end_id"):
            if not 0 <= getattr(self, name) < self.decoder.vocab_size:
                raise ValueError(
                    f"{name}={getattr(self, name)} is not a token of "
                    f"vocab_size={self.decoder.vocab_size}"
                )
        if self.pad_id == self.end_id:
            raise ValueError(
                f"pad_id={self.pad_id} must not be the token that ends an answer"
            )

    @property
    def feature_width(self) -> int:
        """D of the image tower's features, before they are projected.

        >>> named_config("lite0-answers").feature_width
        1280
        """
        if self.tower == "vit":
            return self.vision.width
        return CONVNETS[self.tower].width


GENERATIVE_SIZES = {
    "nano-generative": GenerativeConfig(),
    # Both with MiniLM's vocabulary and width, so that its embeddings fit.
    "nano-answers": GenerativeConfig(
        image_size=32,
        patch_size=8,
        tower="efficientnet_nano",
        decoder=DecoderConfig(
            vocab_size=30_522,
            width=384,
            depth=1,
            heads=6,
            key_value_heads=1,
            head_width=32,
            mlp_width=384,
        ),
        end_id=102,
    ),
    "lite0-answers": GenerativeConfig(
        image_size=224,
        patch_size=32,
        tower="efficientnet_lite0",
        decoder=DecoderConfig(
            vocab_size=30_522,
            width=384,
            depth=3,
            heads=6,
            key_value_heads=2,
            head_width=64,
            mlp_width=768,
        ),
        end_id=102,
    ),
    # PaliGemma, 224 pixels (Beyer et al. 2024): So400m/14 and Gemma 2B.
    "3B/14": GenerativeConfig(
        image_size=224,
        patch_size=14,
        vision=TowerConfig(
            width=1152,
            depth=27,
            heads=16,
            mlp_width=4304,
            pooling="none",
            projection="linear_bias",
        ),
        decoder=DecoderConfig(
            vocab_size=257_216,
            width=2048,
            depth=18,
            heads=8,
            key_value_heads=1,
            head_width=256,
            mlp_width=16_384,
        ),
        end_id=1,
        image_id=257_152,
    ),
}
"""Configurations by name."""


def named_config(name: str, **changes: object) -> GenerativeConfig:
    """Returns ``GENERATIVE_SIZES[name]`` with ``changes``.

    Raises:
        ValueError: if there is no size of that name.

    >>> named_config("3B/14", dtype="bfloat16").decoder.width
    2048
    """
    if name not in GENERATIVE_SIZES:
        raise ValueError(
            f"no generative model size {name!r}{near_match(name, GENERATIVE_SIZES)} "
            f"(sizes: {', '.join(GENERATIVE_SIZES)})"
        )
    return dataclasses.replace(GENERATIVE_SIZES[name], **changes)  # type: ignore[arg-type]


def prefix_mask(real: jax.Array, prefix_length: int) -> jax.Array:
    """Which place may read which: all the prefix, and the suffix up to itself.

    Args:
        real: bool [B, S], false on padding, which no place reads.
        prefix_length: places before the suffix.

    Returns:
        bool [B, S, S]: may a place (second axis) read another (third)?

    >>> prefix_mask(jnp.array([[True, True, True, True]]), 2)[0].astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    """
    place = jnp.arange(real.shape[1])
    readable = (place[None, :] < prefix_length) | (place[None, :] <= place[:, None])
    return readable[None] & real[:, None, :]


class Prefix(NamedTuple):
    """What the decoder reads before it writes, such as image and prompt.

    Attributes:
        x: embeddings [B, P, D].
        real: bool [B, P], false on padding.
    """

    x: jax.Array
    real: jax.Array

    def at_last(self, hidden: jax.Array) -> jax.Array:
        """Of ``hidden`` [B, P, D], the state that predicts the first token: [B, 1, D].

        It is the one at the last place that is not padding.
        """
        places = jnp.arange(self.real.shape[1])[None]
        last = jnp.max(jnp.where(self.real, places, 0), axis=1)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)


def answer_states(
    decoder: Decoder, prefix: Prefix, text: jax.Array, pad_id: int
) -> jax.Array:
    """States that predict the tokens of answers, of these places only.

    Args:
        decoder: reads prefix and answer.
        prefix: before the answer.
        text: int [B, S], the answers. Padding takes no position.
        pad_id: token of the padding.

    Returns:
        [B, S, D]; place s has read the prefix and the tokens of ``text`` before s.
    """
    read, length = text[:, :-1], prefix.x.shape[1]
    x = jnp.concatenate([prefix.x, decoder.embed(read)], axis=1)
    real = jnp.concatenate([prefix.real, read != pad_id], axis=1)
    positions = jnp.cumsum(real, axis=1) - 1
    hidden, _ = decoder(x, positions, prefix_mask(real, length))
    return jnp.concatenate(
        [prefix.at_last(hidden[:, :length]), hidden[:, length:]], axis=1
    )


class Generative(nnx.Module):
    """Answers to prompts about images, token by token.

    `meta_opt.models.decoding` writes them. For pure functions,
    ``graphdef, params = nnx.split(model, nnx.Param)`` and
    ``nnx.merge(graphdef, params)``.

    Args:
        config: sizes and numerics.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(self, config: GenerativeConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width = config.decoder.width
        self.vision: ImageTower
        if config.tower == "vit":
            self.vision = VisionTower(config, width, rngs=rngs)
        else:
            self.vision = ConvTower(
                config.tower, config.image_size, width, config, rngs=rngs
            )
        self.decoder = Decoder(config.decoder, config, rngs=rngs)

    def prefix(
        self,
        image: jax.Array | np.ndarray,
        prompt: jax.Array | np.ndarray | None = None,
    ) -> Prefix:
        """Embeds images and prompts.

        Args:
            image: [B, h, w, 3], uint8 or float in [0, 1]; or of images that were read
                before, what ``vision.features`` gave, [B, P, D].
            prompt: int [B, S], padded anywhere; None for no prompt.

        Raises:
            ValueError: if a shape is not the model's, or the two differ in B.
        """
        x = jnp.asarray(image)
        if x.ndim == 3 and x.shape[-1] == self.config.feature_width:
            features = x.astype(self.config.dtype)
        else:
            features = self.vision.features(x)
        patches = self.vision.project(features)
        if prompt is None:
            prompt = jnp.zeros((len(patches), 0), jnp.int32)
        prompt = _tokens("prompt", prompt, len(patches))
        x = jnp.concatenate([patches, self.decoder.embed(prompt)], axis=1)
        real = jnp.concatenate(
            [jnp.ones(patches.shape[:2], bool), prompt != self.config.pad_id], axis=1
        )
        return Prefix(x, real)

    def hidden(
        self,
        image: jax.Array | np.ndarray,
        prompt: jax.Array | np.ndarray | None,
        text: jax.Array | np.ndarray,
    ) -> jax.Array:
        """States that predict the tokens of answers, of these places only.

        Padding takes no position, so that it may be anywhere.

        Args:
            image: as of `prefix`.
            prompt: int [B, any], or None.
            text: int [B, S], the answers.

        Returns:
            [B, S, D]; place s has read the tokens of ``text`` before s.

        Raises:
            ValueError: if a shape is not the model's, or they differ in B.
        """
        prefix = self.prefix(image, prompt)
        text = _tokens("text", text, len(prefix.x))
        return answer_states(self.decoder, prefix, text, self.config.pad_id)

    def logits(
        self,
        image: jax.Array | np.ndarray,
        prompt: jax.Array | np.ndarray | None,
        text: jax.Array | np.ndarray,
    ) -> jax.Array:
        """Float32 logits of each token of ``text`` given those before, [B, S, K].

        Args and errors as in `hidden`.
        """
        return self.decoder.logits(self.hidden(image, prompt, text))

    def __call__(
        self, batch: Batch
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns what `captioning_loss` takes, so that ``loss(*model(batch))``.

        Args:
            batch: ``image`` as of `prefix`; ``text`` int [B, S], the answers with the
                token that ends them; ``prompt`` int [B, any], if there is one.

        Returns:
            Hidden states [B, S, D], embedding [K, D], targets int [B, S], and a mask
            bool [B, S] that is false on padding.
        """
        text = jnp.asarray(batch["text"])
        return (
            self.hidden(batch["image"], batch.get("prompt"), text),
            self.decoder.tokens.embedding[...],
            text,
            text != self.config.pad_id,
        )


def _tokens(name: str, tokens: jax.Array | np.ndarray, batch: int) -> jax.Array:
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 2 or len(tokens) != batch:
        raise ValueError(
            f"{name} has shape {tokens.shape}; for {batch} images the model takes "
            f"[{batch}, S]"
        )
    return tokens
