"""Classifier: a network with a linear head, on images or features of frozen stages."""

import jax
import jax.numpy as jnp
from flax import nnx

from meta_opt.models.convnets.base import Stages
from meta_opt.models.encoders.base import Encoder


class Head(nnx.Module):
    """Dropout, then a linear layer in float32.

    Args:
        width: D, width of the representation.
        classes: K, number of classes.
        dropout: dropout rate of the pooled features.
        rngs: random streams; ``params`` initialises the parameters.
    """

    def __init__(
        self, width: int, classes: int, dropout: float, *, rngs: nnx.Rngs
    ) -> None:
        self.dropout = nnx.Dropout(dropout)
        self.linear = nnx.Linear(
            width,
            classes,
            kernel_init=nnx.initializers.truncated_normal(0.02),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps [B, D] to logits [B, K]; a key enables dropout."""
        return self.linear(self.dropout(x, deterministic=key is None, rngs=key))


class Classifier(nnx.Module):
    """Global average pooling, an optional layer norm, and a linear head.

    Args:
        trunk: a `ConvNet`, the last `Stages` of one, or another encoder.
        classes: K, number of classes.
        dropout: dropout rate of the pooled features.
        rngs: random streams; ``params`` initialises the head.

    Raises:
        ValueError: fewer than two classes, or a dropout rate outside of [0, 1).
    """

    def __init__(
        self,
        trunk: Encoder,
        classes: int,
        dropout: float = 0.5,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        if classes < 2:
            raise ValueError(f"classes={classes} must be at least 2")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be in [0, 1)")
        self.trunk = trunk
        config = trunk.config  # type: ignore[attr-defined]
        epsilon = getattr(config, "pooled_norm_epsilon", None)
        if epsilon is not None:
            self.norm = nnx.LayerNorm(config.width, epsilon=epsilon, rngs=rngs)
        self.head = Head(config.width, classes, dropout, rngs=rngs)

    def features(self, inputs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Pooled features, float32 [B, D]; see `__call__`."""
        if isinstance(self.trunk, Stages):
            x, _ = self.trunk.tokens(inputs, key)
        else:
            x, _ = self.trunk.tokens(inputs)
        x = jnp.mean(x.astype(jnp.float32), axis=1)
        return self.norm(x) if hasattr(self, "norm") else x

    def __call__(self, inputs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits, float32 [B, K].

        Args:
            inputs: input of the trunk: images uint8 [B, h, w, 3], or a feature grid [B,
                h, w, C].
            key: random key that enables dropout and stochastic depth; None for
                inference.
        """
        if key is None:
            return self.head(self.features(inputs))
        of_trunk, of_head = jax.random.split(key)
        return self.head(self.features(inputs, of_trunk), of_head)
