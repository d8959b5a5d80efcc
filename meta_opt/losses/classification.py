"""The loss of single-label classification."""

import jax
import jax.numpy as jnp
import optax


def classification_loss(
    logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy and top-1 error rate.

    Args:
        logits: [B, K].
        labels: integers in [0, K), [B].

    Returns:
        Both as scalars.

    >>> _, error = classification_loss(jnp.eye(2), jnp.array([0, 0]))
    >>> float(error)
    0.5
    """
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(nats), jnp.mean(jnp.argmax(logits, axis=-1) != labels)
