"""Whisper's speech encoder (Radford et al. 2022, arXiv:2212.04356)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models import layers
from meta_opt.models.encoders.base import Halves, check_trained
from meta_opt.models.layers import Numerics
from meta_opt.models.settings import check_divides


@dataclasses.dataclass(frozen=True)
class WhisperConfig(Numerics):
    """Architecture and numerics; the defaults are Whisper tiny's.

    Attributes:
        mels: number of mel bands of the spectrogram.
        places: number of position embeddings, half the largest number of frames.
        width: D, width of the representation.
        depth: L, number of layers.
        heads: H, number of attention heads; divides ``width``.
        mlp_width: hidden width of the MLP.
    """

    mels: int = 80
    places: int = 1500
    width: int = 384
    depth: int = 4
    heads: int = 6
    mlp_width: int = 1536

    def __post_init__(self) -> None:
        """Raises ValueError for inconsistent sizes and unknown names."""
        super().__post_init__()
        check_divides(self, "heads", "width")


class WhisperEncoder(nnx.Module):
    """Encodes spectrograms as features, one for every two frames.

    It was trained on 30 seconds padded with silence; shorter spectrograms use the first
    positions.

    Args:
        config: architecture and numerics.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        types: dict[str, Any] = {
            "dtype": jnp.dtype(config.dtype),
            "param_dtype": jnp.dtype(config.param_dtype),
        }
        self.first = nnx.Conv(
            config.mels, config.width, (3,), padding=1, rngs=rngs, **types
        )
        self.second = nnx.Conv(
            config.width, config.width, (3,), 2, padding=1, rngs=rngs, **types
        )
        block = layers.BlockConfig(
            width=config.width,
            heads=config.heads,
            mlp_width=config.mlp_width,
            activation="gelu",
            norm_epsilon=1e-5,
            numerics=config,
        )
        init = nnx.initializers.normal(0.02)
        shape = (config.places, config.width)
        self.positions = nnx.Param(init(rngs.params(), shape, types["param_dtype"]))
        self.layers = layers.stack(
            lambda rngs: layers.Block(block, rngs=rngs), config.depth, rngs
        )
        self.norm = block.norm(rngs)

    def features(self, mel: jax.Array) -> jax.Array:
        """Features of a log-mel spectrogram float [B, T, mels]: [B, T / 2, D].

        Raises:
            ValueError: see `hidden`.
        """
        return self.norm(self.hidden(mel))

    def hidden(self, mel: jax.Array) -> jax.Array:
        """Output of the last layer before the norm: [B, T, mels] to [B, T / 2, D].

        Raises:
            ValueError: another number of bands, an odd number of frames, or more frames
                than the model has positions for.
        """
        config = self.config
        frames = mel.shape[1] if mel.ndim == 3 else -1
        if frames % 2 or frames > 2 * config.places or mel.shape[2] != config.mels:
            raise ValueError(
                f"a spectrogram of shape {mel.shape}; the model takes [B, T, "
                f"{config.mels}] with an even T up to {2 * config.places}"
            )
        gelu = layers.ACTIVATIONS["gelu"]
        x = gelu(self.second(gelu(self.first(mel.astype(config.dtype)))))
        x = x + self.positions[: frames // 2][None].astype(x.dtype)
        return layers.apply_stack(
            self.layers, x, remat=config.remat, unroll=not config.scan_layers
        )

    def tokens(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`features` and a mask bool [B, T / 2] that is all true, including silence."""
        x = self.features(inputs)
        return x, jnp.ones(x.shape[:2], bool)

    def halves(self, trained: int) -> Halves:
        """Splits the network below the last ``trained`` layers; see `Divisible`."""
        check_trained(trained, self.config.depth, "Whisper's encoder")
        lower = nnx.clone(self)
        lower.layers, top = layers.cut_stack(self.layers, self.config.depth - trained)

        def hidden(mel: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = lower.hidden(mel)
            return x, jnp.ones(x.shape[:2], bool)

        return Halves(hidden, WhisperTop(self.config, top, self.norm))


class WhisperTop(nnx.Module):
    """The last layers and the final norm.

    Args:
        config: configuration of the whole network.
        top: the last layers, stacked.
        norm: norm of the whole network.
    """

    def __init__(
        self, config: WhisperConfig, top: layers.Block, norm: nnx.Module
    ) -> None:
        self.config, self.layers, self.norm = config, top, nnx.clone(norm)

    def tokens(
        self, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Applies the layers to features and passes on the mask of real ones."""
        x, real = inputs
        config = self.config
        x = layers.apply_stack(
            self.layers,
            x.astype(config.dtype),
            real,
            remat=config.remat,
            unroll=not config.scan_layers,
        )
        return self.norm(x), real


def whisper_parameters(
    tensors: Mapping[str, np.ndarray], depth: int
) -> dict[str, np.ndarray]:
    """Converts the tensors of CTranslate2's Whisper to our paths, in float32.

    Args:
        tensors: tensors of the file by name.
        depth: L, number of layers.
    """
    given = {k: np.asarray(v, np.float32) for k, v in tensors.items()}
    found = {
        "positions": given["encoder/position_encodings/encodings"],
        "norm/scale": given["encoder/layer_norm/gamma"],
        "norm/bias": given["encoder/layer_norm/beta"],
    }
    for ours, theirs in (("first", "conv1"), ("second", "conv2")):
        found[f"{ours}/kernel"] = given[f"encoder/{theirs}/weight"].transpose(2, 1, 0)
        found[f"{ours}/bias"] = given[f"encoder/{theirs}/bias"]

    def stacked(name: str) -> np.ndarray:
        return np.stack([given[f"encoder/layer_{i}/{name}"] for i in range(depth)])

    for ours, theirs in (("attention_norm", "self_attention"), ("mlp_norm", "ffn")):
        found[f"layers/{ours}/scale"] = stacked(f"{theirs}/layer_norm/gamma")
        found[f"layers/{ours}/bias"] = stacked(f"{theirs}/layer_norm/beta")
    joint, bias = (stacked(f"self_attention/linear_0/{x}") for x in ("weight", "bias"))
    parts = zip(np.split(joint, 3, axis=1), np.split(bias, 3, axis=1), strict=True)
    linear = dict(zip(("query", "key", "value"), parts, strict=True))
    places = {f"attention/{k}": v for k, v in linear.items()}
    for ours, theirs in (
        ("attention/out", "self_attention/linear_1"),
        ("mlp/up", "ffn/linear_0"),
        ("mlp/down", "ffn/linear_1"),
    ):
        places[ours] = (stacked(f"{theirs}/weight"), stacked(f"{theirs}/bias"))
    for ours, (weight, vector) in places.items():
        found[f"layers/{ours}/kernel"] = weight.swapaxes(1, 2)
        found[f"layers/{ours}/bias"] = vector
    return found
