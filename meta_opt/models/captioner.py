"""A decoder that generates captions from fused features."""

import dataclasses

import jax
from flax import nnx

from meta_opt.models.decoder import Decoder, DecoderConfig
from meta_opt.models.decoding import DecodingConfig, write
from meta_opt.models.fusion import FusionConfig, Tokens
from meta_opt.models.generative import Prefix, answer_states
from meta_opt.models.settings import check_divides


@dataclasses.dataclass(frozen=True)
class CaptionerConfig:
    """Architecture of a `Captioner`.

    Attributes:
        vocab_size: K, size of the vocabulary; 0 for no captioner.
        width: D, width of the decoder.
        depth: L, number of layers.
        heads: H, number of query heads, which share one key-value head; divides
            ``width``.
        pad_id: id of the padding token.
        end_id: id of the token that ends a caption.
    """

    vocab_size: int = 0
    width: int = 128
    depth: int = 2
    heads: int = 4
    pad_id: int = 0
    end_id: int = 3

    def __post_init__(self) -> None:
        """Raises ValueError for inconsistent sizes."""
        check_divides(self, "heads", "width")
        if self.vocab_size and not self.pad_id < self.vocab_size > self.end_id:
            raise ValueError(
                f"pad_id={self.pad_id} and end_id={self.end_id} must be tokens of "
                f"vocab_size={self.vocab_size}"
            )

    @property
    def decoder(self) -> DecoderConfig:
        """The configuration of the decoder."""
        return DecoderConfig(
            vocab_size=self.vocab_size,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            head_width=self.width // self.heads,
            mlp_width=4 * self.width,
        )


class Captioner(nnx.Module):
    """An autoregressive decoder from fused features to captions.

    Args:
        config: architecture of the decoder.
        fusion: configuration of the fusion whose features are decoded, with the
            numerics.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(
        self, config: CaptionerConfig, fusion: FusionConfig, *, rngs: nnx.Rngs
    ) -> None:
        self.config = config
        self.project = fusion.linear(fusion.width, config.width, rngs)
        self.decoder = Decoder(config.decoder, fusion, rngs=rngs)

    def _prefix(self, fused: Tokens) -> Prefix:
        return Prefix(self.project(fused.x), fused.real)

    def states(
        self, fused: Tokens, text: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Arguments of `meta_opt.losses.captioning.captioning_loss`.

        Args:
            fused: features [B, P, D].
            text: int [B, S], captions with their end tokens.

        Returns:
            Hidden states [B, S, D], embedding [K, D], targets int [B, S], and a mask
            bool [B, S] that is false at padding.
        """
        pad_id = self.config.pad_id
        hidden = answer_states(self.decoder, self._prefix(fused), text, pad_id)
        return hidden, self.decoder.tokens.embedding[...], text, text != pad_id

    def logits(self, fused: Tokens, text: jax.Array) -> jax.Array:
        """Float32 logits of each token of ``text`` given earlier ones, [B, S, K]."""
        return self.decoder.logits(self.states(fused, text)[0])

    def write(self, fused: Tokens, max_tokens: int) -> jax.Array:
        """The likeliest captions, int32 [B, max_tokens], padded; under `jax.jit`."""
        return write(
            self.decoder,
            self._prefix(fused),
            self.config.pad_id,
            self.config.end_id,
            DecodingConfig(max_tokens),
        )
