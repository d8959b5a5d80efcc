"""Video-text matching loss and the sampling of its negatives."""

import jax
import jax.numpy as jnp
import optax

from meta_opt.losses.masked import masked_mean


def matching_loss(
    logits: jax.Array, matches: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    r"""Binary cross-entropy of matching pairs, as in VIOLET (arXiv:2111.12681).

    .. math::
      -\frac{1}{N} \sum_n y_n \log \sigma(z_n) + (1 - y_n) \log \sigma(-z_n)

    Args:
        logits: z, [N], logits of the B pairs of a batch and of negatives made with
            `rolled_negatives` or `hard_negatives`.
        matches: y, bool [N].
        mask: bool [N], false for pairs to ignore, such as those of rows without a
            negative. None: all count.

    Returns:
        float32 scalar, nats per pair; 0 if all are masked.

    Raises:
        ValueError: if the shapes differ.

    >>> loss = matching_loss(jnp.zeros(3), jnp.array([True, False, False]))
    >>> round(float(loss), 4), round(float(jnp.log(2)), 4)
    (0.6931, 0.6931)
    """
    mask = jnp.ones(logits.shape, bool) if mask is None else mask
    if not logits.shape == matches.shape == mask.shape:
        raise ValueError(
            f"logits {logits.shape}, matches {matches.shape} and mask {mask.shape} "
            "must have one shape"
        )
    logits = jnp.where(mask, logits.astype(jnp.float32), 0)
    nats = optax.sigmoid_binary_cross_entropy(logits, matches.astype(jnp.float32))
    return masked_mean(nats, mask)


def negative_pairs(*ids: jax.Array) -> jax.Array:
    """Pairs of rows of a batch that are negatives.

    Args:
        ids: one or more arrays [B] or [B, S], such as the clip's index and the tokens
            of the text of each row.

    Returns:
        bool [B, B], true where two rows differ in all arrays: false for two captions of
        the same clip, equal captions of two clips, and on the diagonal.

    >>> clip, text = jnp.array([0, 0, 1]), jnp.array([[5, 6], [5, 7], [5, 6]])
    >>> negative_pairs(clip, text).astype(int).tolist()
    [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    """
    size = len(ids[0])
    found = jnp.ones((size, size), bool)
    for x in ids:
        x = jnp.reshape(x, (size, -1))
        found &= jnp.any(x[:, None] != x[None, :], axis=-1)
    return found


def rolled_negatives(batch_size: int, shift: int = 1) -> jax.Array:
    """Pairs each video of a batch with another text as a negative.

    Args:
        batch_size: B.
        shift: offset from a video to its negative text.

    Returns:
        int [B], a permutation without fixed points.

    Raises:
        ValueError: if the shift maps every text to itself, as in a batch of one.

    >>> rolled_negatives(3).tolist()
    [1, 2, 0]
    """
    if batch_size < 2 or shift % batch_size == 0:
        raise ValueError(
            f"shift={shift} pairs each of {batch_size} videos with its own text; a "
            "negative needs a batch of at least two and a shift that is not a multiple "
            "of its size"
        )
    return (jnp.arange(batch_size) + shift) % batch_size


def hard_negatives(
    key: jax.Array, similarity: jax.Array, positives: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    r"""Samples negatives by similarity (ALBEF, Li et al. 2021, arXiv:2107.07651).

    Row i gets column j with probability proportional to :math:`e^{s_{ij}}` over the
    columns that do not match it. To sample a video for each text, transpose.

    Args:
        key: random key.
        similarity: s, [B, B], scaled by the inverse temperature.
        positives: bool [B, B], true where row and column match, such as two captions of
            the same video. None: the diagonal.

    Returns:
        The columns, int [B], and bool [B], false for rows without a negative, whose
        column is arbitrary: the mask of `matching_loss`.

    Raises:
        ValueError: if the shapes are not [B, B].

    >>> similarity = jnp.array([[9.0, 0.0, 99.0], [9.0, 9.0, -99.0], [0.0, 99.0, 9.0]])
    >>> [x.tolist() for x in hard_negatives(jax.random.key(0), similarity)]
    [[2, 0, 1], [True, True, True]]
    """
    size = len(similarity)
    positives = jnp.eye(size, dtype=bool) if positives is None else positives
    if not similarity.shape == positives.shape == (size, size):
        raise ValueError(
            f"similarity {similarity.shape} and positives {positives.shape} must be "
            "[B, B]"
        )
    logits = jnp.where(positives, -jnp.inf, similarity.astype(jnp.float32))
    return jax.random.categorical(key, logits, axis=1), ~jnp.all(positives, axis=1)
