"""MiniLM, a sentence encoder with six BERT layers (Wang et al. 2020).

Post-LN: each norm follows the residual addition (Devlin et al. 2019, arXiv:1810.04805).
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models import layers
from meta_opt.models.encoders.base import Halves, check_trained
from meta_opt.models.layers import Numerics
from meta_opt.models.settings import check_divides


@dataclasses.dataclass(frozen=True)
class MiniLMConfig(Numerics):
    """Architecture and numerics; the defaults are all-MiniLM-L6-v2's.

    Attributes:
        vocab_size: K, size of the vocabulary.
        text_length: number of position embeddings, the largest S.
        width: D, width of the representation.
        depth: L, number of layers.
        heads: H, number of attention heads; divides ``width``.
        mlp_width: hidden width of the MLP.
        pad_id: id of the padding token.
    """

    vocab_size: int = 30_522
    text_length: int = 512
    width: int = 384
    depth: int = 6
    heads: int = 12
    mlp_width: int = 1536
    pad_id: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for inconsistent sizes and unknown names."""
        super().__post_init__()
        check_divides(self, "heads", "width")


class PostBlock(nnx.Module):
    """Post-LN block: ``norm(x + attention(x))``, then ``norm(x + mlp(x))``."""

    def __init__(self, config: layers.BlockConfig, *, rngs: nnx.Rngs) -> None:
        self.attention = layers.Attention(config, rngs=rngs)
        self.attention_norm = config.norm(rngs)
        self.mlp = layers.MLP(config, rngs=rngs)
        self.mlp_norm = config.norm(rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]; ``mask`` bool [B, S] is false at padding."""
        x = self.attention_norm(x + self.attention(x, mask=mask))
        return self.mlp_norm(x + self.mlp(x))


class MiniLM(nnx.Module):
    """Encodes token ids as features per token, or as a unit vector per sentence.

    Args:
        config: architecture and numerics.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(self, config: MiniLMConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        init = nnx.initializers.normal(0.02)
        dtype = jnp.dtype(config.param_dtype)

        def table(rows: int) -> nnx.Param:
            return nnx.Param(init(rngs.params(), (rows, config.width), dtype))

        block = layers.BlockConfig(
            width=config.width,
            heads=config.heads,
            mlp_width=config.mlp_width,
            activation="gelu",
            norm_epsilon=1e-12,
            numerics=config,
        )
        self.embedding = table(config.vocab_size)
        self.positions = table(config.text_length)
        self.norm = block.norm(rngs)
        self.layers = layers.stack(
            lambda rngs: PostBlock(block, rngs=rngs), config.depth, rngs
        )

    def tokens(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features of ids int [B, S]: [B, S, D], and bool [B, S], false at padding.

        Raises:
            ValueError: more tokens than there are positions.
        """
        length = inputs.shape[1]
        if length > self.config.text_length:
            raise ValueError(
                f"{length} tokens are more than the {self.config.text_length} places "
                "of the model"
            )
        real = inputs != self.config.pad_id
        x = self.embedding[...][inputs] + self.positions[:length][None]
        x = self.norm(x.astype(self.config.dtype))
        return _through(self.config, self.layers, x, real), real

    def halves(self, trained: int) -> Halves:
        """Splits the network below the last ``trained`` layers; see `Divisible`."""
        check_trained(trained, self.config.depth, "MiniLM")
        lower = nnx.clone(self)
        lower.layers, top = layers.cut_stack(self.layers, self.config.depth - trained)
        return Halves(MiniLMBottom(lower), MiniLMTop(self.config, top))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Mean of the features of int [B, S], as float32 unit rows [B, D]."""
        z = layers.mean_pool(*self.tokens(inputs)).astype(jnp.float32)
        return layers.l2_normalize(z)


class MiniLMBottom(nnx.Module):
    """Embeddings and first layers, for models that run them on masked texts.

    Args:
        encoder: encoder with the first layers only.
    """

    def __init__(self, encoder: MiniLM) -> None:
        self.encoder = encoder

    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`MiniLM.tokens` of ids int [B, S]."""
        return self.encoder.tokens(inputs)


class MiniLMTop(nnx.Module):
    """The last layers.

    Args:
        config: configuration of the whole network.
        top: the last layers, stacked.
    """

    def __init__(self, config: MiniLMConfig, top: PostBlock) -> None:
        self.config, self.layers = config, top

    def tokens(
        self, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Applies the layers to features and passes on the mask of real ones."""
        x, real = inputs
        return _through(self.config, self.layers, x, real), real


def _through(
    config: MiniLMConfig, stacked: PostBlock, x: jax.Array, real: jax.Array
) -> jax.Array:
    x, _ = layers.scan_stack(
        lambda block, x, _: (block(x, real), None),
        stacked,
        x.astype(config.dtype),
        remat=config.remat,
        unroll=not config.scan_layers,
    )
    return x


def minilm_parameters(
    tensors: Mapping[str, np.ndarray], depth: int
) -> dict[str, np.ndarray]:
    """Converts BERT's tensors with Transformers' names to our paths.

    Args:
        tensors: tensors of the file by name.
        depth: L, number of layers.
    """
    names = {
        "attention/query": "attention.self.query",
        "attention/key": "attention.self.key",
        "attention/value": "attention.self.value",
        "attention/out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "mlp/up": "intermediate.dense",
        "mlp/down": "output.dense",
        "mlp_norm": "output.LayerNorm",
    }
    embeddings = "embeddings"
    first = tensors[f"{embeddings}.token_type_embeddings.weight"][0]
    found = {
        # A single sentence has token type 0, whose vector is added to all positions.
        "positions": tensors[f"{embeddings}.position_embeddings.weight"] + first,
        "embedding": tensors[f"{embeddings}.word_embeddings.weight"],
        "norm/scale": tensors[f"{embeddings}.LayerNorm.weight"],
        "norm/bias": tensors[f"{embeddings}.LayerNorm.bias"],
    }
    for ours, theirs in names.items():
        weights, biases = (
            np.stack(
                [tensors[f"encoder.layer.{i}.{theirs}.{leaf}"] for i in range(depth)]
            )
            for leaf in ("weight", "bias")
        )
        is_norm = ours.endswith("norm")
        found[f"layers/{ours}/{'scale' if is_norm else 'kernel'}"] = (
            weights if is_norm else weights.swapaxes(1, 2)
        )
        found[f"layers/{ours}/bias"] = biases
    return found
