"""Contrastive losses between image and text embeddings of matching pairs.

Both treat row i of ``image_z`` and row i of ``text_z`` as the only matching pair. If
two rows of a batch have the same caption (icons titled "star"), each is a false
negative of the other: the loss then has a floor above zero, which grows with the batch
size. `softmax_pair_loss` excludes such pairs given ``negatives``
(`meta_opt.losses.matching.negative_pairs`), and metrics given ``groups``
(`meta_opt.metrics.retrieval`).
"""

import jax
import jax.numpy as jnp


def similarity_logits(
    image_z: jax.Array, text_z: jax.Array, scale: jax.Array | float
) -> jax.Array:
    """Returns ``scale * image_z @ text_z.T`` in float32, [B, D] x [B, D] to [B, B]."""
    if image_z.shape != text_z.shape:
        raise ValueError(
            f"image_z {image_z.shape} and text_z {text_z.shape} must have one shape"
        )
    cosines = jnp.matmul(image_z, text_z.T, preferred_element_type=jnp.float32)
    return jnp.asarray(scale, jnp.float32) * cosines


def clip_loss(
    image_z: jax.Array,
    text_z: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array | float | None = None,
) -> jax.Array:
    r"""Symmetric softmax cross-entropy (Radford et al. 2021, arXiv:2103.00020).

    With logits :math:`l_{ij} = s\, x_i \cdot y_j`,

    .. math::
      \frac{1}{2B} \sum_i \Big[\log\sum_j e^{l_{ij}} + \log\sum_j e^{l_{ji}}
      - 2\, l_{ii}\Big].

    Args:
        image_z: [B, D], unit rows.
        text_z: [B, D], unit rows.
        scale: logit scale s (inverse temperature).
        bias: ignored, since the softmax is invariant to it; exists so that both losses
            have the same signature.

    Returns:
        float32 scalar, nats.

    Raises:
        ValueError: if the shapes differ.
    """
    del bias
    return softmax_pair_loss(similarity_logits(image_z, text_z, scale))


def softmax_pair_loss(
    logits: jax.Array, negatives: jax.Array | None = None
) -> jax.Array:
    """The loss of `clip_loss` as a function of logits.

    Args:
        logits: [B, B]; the matching pair i is row i and column i.
        negatives: bool [B, B], false for off-diagonal pairs that match as well, such as
            another caption of the same clip; they are excluded from both sums. None:
            all off-diagonal pairs are negatives.

    Returns:
        float32 scalar, nats.

    Raises:
        ValueError: if the shapes are not [B, B].

    >>> same = jnp.zeros((2, 2), bool)  # Two captions of one clip.
    >>> [round(float(softmax_pair_loss(jnp.zeros((2, 2)), x)), 4) for x in (None, same)]
    [0.6931, 0.0]
    """
    logits = logits.astype(jnp.float32)
    own = jnp.diagonal(logits)
    size = len(logits)
    if negatives is not None:
        if not logits.shape == negatives.shape == (size, size):
            raise ValueError(
                f"logits {logits.shape} and negatives {negatives.shape} must be [B, B]"
            )
        logits = jnp.where(negatives | jnp.eye(size, dtype=bool), logits, -jnp.inf)
    by_image = jax.nn.logsumexp(logits, axis=1)
    by_text = jax.nn.logsumexp(logits, axis=0)
    return jnp.mean(0.5 * (by_image + by_text) - own)


def siglip_loss(
    image_z: jax.Array,
    text_z: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array | float,
) -> jax.Array:
    r"""Pairwise sigmoid loss (Zhai et al. 2023, arXiv:2303.15343, equation 1).

    .. math::
      -\frac{1}{B} \sum_{ij} \log \sigma\big(m_{ij} (s\, x_i \cdot y_j + b)\big),
      \quad m_{ij} = 1 \text{ if } i = j \text{ else } -1.

    Args:
        image_z: [B, D], unit rows.
        text_z: [B, D], unit rows.
        scale: logit scale s.
        bias: logit bias b.

    Returns:
        float32 scalar, nats per image.

    Raises:
        ValueError: if the shapes differ.
    """
    logits = similarity_logits(image_z, text_z, scale) + bias
    signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jnp.sum(jax.nn.log_sigmoid(signs * logits)) / len(logits)


LOSSES = {"clip": clip_loss, "siglip": siglip_loss}
"""Losses by name, each called as ``loss(image_z, text_z, scale, bias)``."""
