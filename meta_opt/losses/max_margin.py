"""Max-margin ranking loss for a batch of matching pairs."""

import jax
import jax.numpy as jnp


def max_margin_loss(
    similarity: jax.Array, margin: float = 0.1, negatives: jax.Array | None = None
) -> jax.Array:
    r"""Symmetric max-margin ranking loss over all negatives of a batch.

    .. math::
      \frac{1}{B^2} \sum_{i \ne j} \max(0, \mu + s_{ij} - s_{ii})
      + \max(0, \mu + s_{ij} - s_{jj})

    All negatives have weight one, without hard-negative mining. The loss is zero once
    every matching pair exceeds its row and its column by the margin. The ranking loss
    of UniVL (Luo et al. 2020, arXiv:2002.06353) includes the diagonal in the mean: it
    is larger by the constant :math:`2\mu / B`, with the same gradient.

    Args:
        similarity: s, [B, B]; the matching pair i is row i and column i.
        margin: mu.
        negatives: bool [B, B], false for off-diagonal pairs that match as well, such as
            another caption of the same clip; they contribute 0, and the sum is still
            divided by B squared. None: all off-diagonal pairs are negatives.

    Returns:
        float32 scalar; 0 for a batch of one.

    Raises:
        ValueError: if ``similarity`` is not square, or ``negatives`` has another shape.

    >>> round(float(max_margin_loss(jnp.array([[1.0, 0.95], [0.0, 1.0]]))), 4)
    0.025
    """
    size = len(similarity)
    if similarity.shape != (size, size):
        raise ValueError(f"similarity {similarity.shape} must be [B, B]")
    counted = ~jnp.eye(size, dtype=bool)
    if negatives is not None:
        if negatives.shape != similarity.shape:
            raise ValueError(
                f"negatives {negatives.shape} must have the shape of similarity "
                f"{similarity.shape}"
            )
        counted &= negatives
    scores = similarity.astype(jnp.float32)
    own = jnp.diagonal(scores)
    excess = jax.nn.relu(margin + scores - own[:, None])
    excess += jax.nn.relu(margin + scores - own[None, :])
    return jnp.sum(jnp.where(counted, excess, 0)) / size**2
