"""Generative vision-language model: an image tower and a decoder.

PaliGemma's architecture (Beyer et al. 2024, arXiv:2407.07726): SigLIP's patch features,
or the feature grid of a convolutional network, are projected to the decoder's width and
prepended to the tokens of a prompt. This prefix has full self-attention; the tokens of
the answer attend to the prefix and causally to each other.
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
        tower: image tower: ``vit``, the vision tower, or a convolutional one of
            `meta_opt.models.conv_tower.CONVNETS`. For the latter, ``patch_size`` is the
            stride of the features, and ``vision`` and the fields of patches and
            channels are ignored.
        vision: the vision tower, without pooling, projected to the decoder's width.
        decoder: the decoder.
        pad_id: id of the padding token.
        end_id: id of the token that ends an answer.
        image_id: id of the token that stands for a patch in Transformers; -1 for one
            beyond the vocabulary. It is not used here.
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
        """Width of the image tower's features before the projection.

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
    """Prefix-LM attention mask: full over the prefix, causal over the suffix.

    Args:
        real: bool [B, S], false at padding, which is never attended to.
        prefix_length: number of positions before the suffix.

    Returns:
        bool [B, S, S]: whether a position (second axis) may attend to another (third).

    >>> prefix_mask(jnp.array([[True, True, True, True]]), 2)[0].astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    """
    place = jnp.arange(real.shape[1])
    readable = (place[None, :] < prefix_length) | (place[None, :] <= place[:, None])
    return readable[None] & real[:, None, :]


class Prefix(NamedTuple):
    """Input of the decoder before the answer, such as image and prompt.

    Attributes:
        x: embeddings [B, P, D].
        real: bool [B, P], false on padding.
    """

    x: jax.Array
    real: jax.Array

    def at_last(self, hidden: jax.Array) -> jax.Array:
        """Selects the state of ``hidden`` [B, P, D] that predicts the first token.

        It is the one at the last position that is not padding: [B, 1, D].
        """
        places = jnp.arange(self.real.shape[1])[None]
        last = jnp.max(jnp.where(self.real, places, 0), axis=1)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)


def answer_states(
    decoder: Decoder, prefix: Prefix, text: jax.Array, pad_id: int
) -> jax.Array:
    """Hidden states at the positions that predict the tokens of answers.

    Args:
        decoder: the token decoder.
        prefix: input before the answer.
        text: int [B, S], the answers. Padding does not count for positions.
        pad_id: id of the padding token.

    Returns:
        [B, S, D]; state s depends on the prefix and the tokens of ``text`` before s.
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
    """Model of answers to prompts about images.

    `meta_opt.models.decoding` generates answers. For pure functions, ``graphdef, params
    = nnx.split(model, nnx.Param)`` and ``nnx.merge(graphdef, params)``.

    Args:
        config: architecture and numerics.
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
            image: [B, h, w, 3], uint8 or float in [0, 1]; or precomputed outputs of
                ``vision.features``, [B, P, D].
            prompt: int [B, S], padded anywhere; None for no prompt.

        Raises:
            ValueError: if a shape does not fit the model, or batch sizes differ.
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
        """Hidden states at the positions that predict the tokens of answers.

        Padding does not count for positions, so that it may be anywhere.

        Args:
            image: see `prefix`.
            prompt: int [B, any], or None.
            text: int [B, S], the answers.

        Returns:
            [B, S, D]; state s depends on the tokens of ``text`` before s.

        Raises:
            ValueError: if a shape does not fit the model, or batch sizes differ.
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
        """Float32 logits of each token of ``text`` given earlier ones, [B, S, K].

        Args and errors as in `hidden`.
        """
        return self.decoder.logits(self.hidden(image, prompt, text))

    def __call__(
        self, batch: Batch
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns the arguments of `captioning_loss`, for ``loss(*model(batch))``.

        Args:
            batch: ``image``, see `prefix`; ``text`` int [B, S], the answers with their
                end tokens; optionally ``prompt`` int [B, any].

        Returns:
            Hidden states [B, S, D], embedding [K, D], targets int [B, S], and a mask
            bool [B, S] that is false at padding.
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
