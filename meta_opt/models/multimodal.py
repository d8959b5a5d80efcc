"""Multimodal model of image, text, audio and video: encoders, fusion, heads.

Input processing and feature fusion of the Meta Optimizer framework (Muhajab et al.).
Any modality may be missing from a batch or from some of its samples.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from meta_opt.models.captioner import Captioner, CaptionerConfig
from meta_opt.models.encoders.base import Encoder
from meta_opt.models.fusion import (
    Fused,
    Fusion,
    FusionConfig,
    Projection,
    TemporalTransformer,
    Tokens,
)
from meta_opt.models.layers import l2_normalize, logit_scale
from meta_opt.types import Batch, PyTree

MODALITIES = ("image", "text", "audio", "video")
_LINEAR = ("classes", "scores", "embed_dim")
"""Heads that consist of one linear layer."""
_READ_OUT = ("classes", "scores")
"""Heads that can be combined with a readout."""


@dataclasses.dataclass(frozen=True)
class HeadsConfig:
    """Output heads on the fused features.

    Attributes:
        classes: K, number of classes; 0 for no classification head.
        scores: number of regression outputs; 0 for no regression head.
        embed_dim: width of the retrieval embeddings; 0 for no retrieval head.
        readout: whether to add a linear readout of the mean features of the pretrained
            encoders, which are then part of a batch (``means``), to classes and scores.
            The heads on the fusion are initialised to zero, so that training starts
            from the readout and the heads learn its residual.
        captioner: decoder of captions; without a vocabulary there is none.
    """

    classes: int = 0
    scores: int = 0
    embed_dim: int = 0
    readout: bool = False
    captioner: CaptionerConfig = dataclasses.field(default_factory=CaptionerConfig)

    def __post_init__(self) -> None:
        """Raises ValueError for negative sizes."""
        for name in _LINEAR:
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


class Multimodal(nnx.Module):
    """Encoders of several modalities, a fusion transformer and output heads.

    A batch has the inputs of the encoders by modality (``image`` [B, h, w, 3], ``text``
    int [B, S], ``audio`` float [B, T, mels], ``video`` [B, T, h, w, 3], which the image
    encoder processes frame by frame) and, if samples lack one of them,
    ``<modality>_present`` bool [B]. The inputs of encoders that are upper halves
    (`meta_opt.models.encoders.base.Halves`) are the outputs of the lower halves.

    With a readout, a batch also has ``means``, float32 [B, W], where W is the sum of
    the encoders' widths in the order of the modalities
    (`meta_opt.workloads.readout.mean_features`), or ``read`` float32 [B, K], the
    outputs of the readout.

    Args:
        config: architecture and numerics of the fusion.
        encoders: encoders by modality; ``video`` may be omitted if there is an image
            encoder.
        modalities: input modalities of the model.
        heads: output heads.
        rngs: random streams; ``params`` initialises all but the encoders.

    Raises:
        ValueError: an unknown modality, or one without an encoder.
    """

    def __init__(
        self,
        config: FusionConfig,
        encoders: Mapping[str, Any],
        modalities: Collection[str],
        heads: HeadsConfig,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        used = {m: "image" if m == "video" else m for m in modalities}
        used = {m: m if m in encoders else e for m, e in used.items()}
        for modality, encoder in used.items():
            if modality not in MODALITIES or encoder not in encoders:
                raise ValueError(
                    f"no encoder for the modality {modality!r}; encoders: "
                    f"{', '.join(encoders) or 'none'}; modalities: "
                    f"{', '.join(MODALITIES)}"
                )
        self.config, self.modalities = config, tuple(used)
        # Hashable, so that functions of the module are compiled only once.
        self._encoder_of = tuple(used.items())
        self.encoders = nnx.Dict({e: encoders[e] for e in dict.fromkeys(used.values())})
        widths = {m: encoders[e].config.width for m, e in used.items()}
        # Of the encoders' own features.
        self._widths = tuple(widths.values())
        if "video" in used:
            self.video_temporal = TemporalTransformer(
                config, widths["video"], rngs=rngs
            )
            widths["video"] = config.width
        self.projections = nnx.Dict(
            {m: Projection(config, width, rngs=rngs) for m, width in widths.items()}
        )
        self.fusion = Fusion(config, rngs=rngs)
        sizes = {name: getattr(heads, name) for name in _LINEAR}
        self.heads = nnx.Dict(
            {k: config.linear(config.width, n, rngs) for k, n in sizes.items() if n}
        )
        read_out = [k for k in _READ_OUT if sizes[k]] if heads.readout else []
        self.readouts = nnx.Dict(
            {k: config.linear(sum(self._widths), sizes[k], rngs) for k in read_out}
        )
        for name in read_out:
            for layer in (self.heads[name], self.readouts[name]):
                layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
        if heads.embed_dim:
            self.logit_scale = nnx.Param(jnp.float32(math.log(10.0)))
        if heads.captioner.vocab_size:
            self.captioner = Captioner(heads.captioner, config, rngs=rngs)

    def encode(self, batch: Batch) -> dict[str, Tokens]:
        """Encodes the modalities of a batch.

        Raises:
            ValueError: a batch without any of the model's modalities.
        """
        there = [m for m in self.modalities if m in batch]
        if not there:
            raise ValueError(
                f"a batch of {', '.join(batch)}; the model reads "
                f"{', '.join(self.modalities)}"
            )
        return {m: self._features(m, batch[m]) for m in there}

    def _features(self, modality: str, inputs: PyTree) -> Tokens:
        inputs = jax.tree.map(jnp.asarray, inputs)
        encoder: Encoder = self.encoders[dict(self._encoder_of)[modality]]
        if modality != "video":
            x, real = encoder.tokens(inputs)
            return Tokens(self.projections[modality](x), real)
        batch, frames = jax.tree.leaves(inputs)[0].shape[:2]
        each = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)
        x, _ = encoder.tokens(each)
        x = jnp.mean(x, axis=1).reshape(batch, frames, -1)
        real = jnp.ones((batch, frames), bool)
        return Tokens(self.projections["video"](self.video_temporal(x)), real)

    def fuse(self, batch: Batch) -> Fused:
        """Fuses the modalities of a batch."""
        return self._fuse(self.encode(batch), batch)

    def _fuse(self, encoded: Mapping[str, Tokens], batch: Batch) -> Fused:
        """Fuses encoded modalities, with masks of presence from ``batch``."""
        return self.fusion(dict(encoded), _presence(encoded, batch))

    def _read(self, head: str, encoded: Collection[str], batch: Batch) -> jax.Array:
        """Outputs of the readout for some modalities, float32 [B, K]."""
        if "read" in batch:
            # Known only for all modalities together.
            share = float(set(encoded) == set(self.modalities))
            return share * jnp.asarray(batch["read"])
        if "means" not in batch:
            raise ValueError(
                f"a batch of {', '.join(batch)}; a model with a readout needs 'means', "
                "see meta_opt.workloads.readout.mean_features"
            )
        means, present = jnp.asarray(batch["means"]), _presence(encoded, batch)
        parts, start = [], 0
        for modality, width in zip(self.modalities, self._widths, strict=True):
            part = means[:, start : start + width] * float(modality in encoded)
            if modality in present:
                part = jnp.where(present[modality][:, None], part, 0.0)
            parts.append(part)
            start += width
        found = self.readouts[head](jnp.concatenate(parts, axis=1))
        return found.astype(jnp.float32)

    def classify(self, batch: Batch) -> jax.Array:
        """Float32 logits [B, K]."""
        return self._predict("classes", batch)

    def classify_encoded(
        self, encoded: Mapping[str, Tokens], batch: Batch
    ) -> jax.Array:
        """Float32 logits [B, K] from encoded features.

        Given features of some modalities only, these are the logits of the batch with
        all others masked: a masked token has weight 0 in attention, and the fusion has
        no position embeddings. Omitting modalities is therefore exact, and cheaper.

        Args:
            encoded: outputs of `encode`, for all or some of the modalities.
            batch: batch, of which only ``<modality>_present`` is used.
        """
        return self._predict("classes", batch, encoded)

    def score(self, batch: Batch) -> jax.Array:
        """Float32 regression outputs [B, scores]."""
        return self._predict("scores", batch)

    def embed(self, batch: Batch, modalities: Collection[str]) -> jax.Array:
        """Float32 unit vectors [B, embed_dim] from some of the modalities only.

        Retrieval compares those of ``("image",)`` with those of ``("text",)``.
        """
        kept = {m: batch[m] for m in modalities}
        names = [f"{m}_present" for m in modalities]
        kept |= {name: batch[name] for name in names if name in batch}
        z = self._predict("embed_dim", kept)
        return l2_normalize(z)

    @property
    def scale(self) -> jax.Array:
        """Logit scale (inverse temperature) of a contrastive loss."""
        return logit_scale(self.logit_scale[...])

    def caption_states(self, batch: Batch, text: jax.Array) -> tuple[jax.Array, ...]:
        """Arguments of `captioning_loss` for captions int [B, S]."""
        return self._writer().states(self.fuse(batch).tokens, jnp.asarray(text))

    def caption_logits(self, batch: Batch, text: jax.Array) -> jax.Array:
        """Float32 logits of each token of captions int [B, S]: [B, S, K]."""
        return self._writer().logits(self.fuse(batch).tokens, jnp.asarray(text))

    def write(self, batch: Batch, max_tokens: int) -> jax.Array:
        """Greedily decoded captions, int32 [B, max_tokens]; call under `jax.jit`."""
        return self._writer().write(self.fuse(batch).tokens, max_tokens)

    def _writer(self) -> Captioner:
        if not hasattr(self, "captioner"):
            raise ValueError("the model has no captioner (HeadsConfig.captioner)")
        return self.captioner

    def _predict(
        self, head: str, batch: Batch, encoded: Mapping[str, Tokens] | None = None
    ) -> jax.Array:
        # Checked before the inputs, since a missing head means the wrong model.
        if head not in self.heads:
            raise ValueError(
                f"the model has no head for {head}; it has "
                f"{', '.join(self.heads) or 'none'} (HeadsConfig)"
            )
        encoded = self.encode(batch) if encoded is None else encoded
        found = self.heads[head](self._fuse(encoded, batch).summary)
        found = found.astype(jnp.float32)
        if head not in self.readouts:
            return found
        return found + self._read(head, encoded, batch)


def _presence(names: Collection[str], batch: Batch) -> dict[str, jax.Array]:
    """Masks of presence, bool [B] by modality, as far as the batch has them."""
    return {
        m: jnp.asarray(batch[f"{m}_present"]) for m in names if f"{m}_present" in batch
    }
