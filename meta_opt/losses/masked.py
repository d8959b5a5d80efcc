"""Losses of masked modelling, and the sampling of masks.

`masked_cross_entropy` is for words and visual tokens (indices of a codebook), given
logits; `meta_opt.losses.captioning` computes the same mean from hidden states without
materialising all logits. Frames have no vocabulary: `masked_frame_nce` contrasts each
with the other frames of the batch.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
import optax


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean in float32 of the values where ``mask`` is true; 0 if it is nowhere true.

    Args:
        values: [...].
        mask: bool [...].

    >>> float(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0]) > 0))
    2.0
    """
    kept = jnp.where(mask, values.astype(jnp.float32), 0)
    return jnp.sum(kept) / jnp.maximum(jnp.sum(mask), 1)


def masked_cross_entropy(
    logits: jax.Array, targets: jax.Array, mask: jax.Array
) -> jax.Array:
    r"""Mean cross-entropy of the masked positions.

    .. math::
      -\sum_p m_p \log \mathrm{softmax}(z_p)_{t_p} \Big/ \sum_p m_p

    Masked words as in BERT (Devlin et al. 2018, arXiv:1810.04805) with z over the
    vocabulary; masked visual tokens as in VIOLET (Fu et al. 2021, arXiv:2111.12681)
    with z over the codebook.

    Args:
        logits: z, [..., K], such as [B, S, K]. They are ignored where ``mask`` is
            false, even if they are not finite.
        targets: t, int [...]; any number where ``mask`` is false.
        mask: m, bool [...], true at the positions to predict.

    Returns:
        float32 scalar, nats per masked position; 0 if nothing is masked.

    Raises:
        ValueError: if the shapes do not fit together.

    >>> targets = jnp.array([[1, 2, -1]])
    >>> loss = masked_cross_entropy(jnp.zeros((1, 3, 8)), targets, targets > 0)
    >>> round(float(loss), 4), round(float(jnp.log(8)), 4)
    (2.0794, 2.0794)
    """
    if targets.shape != logits.shape[:-1] or mask.shape != targets.shape:
        raise ValueError(
            f"logits {logits.shape}, targets {targets.shape} and mask {mask.shape} "
            "must be [..., K], [...] and [...]"
        )
    # Replace before the softmax, so that the gradient is finite, too.
    logits = jnp.where(mask[..., None], logits.astype(jnp.float32), 0)
    nats = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(mask, targets, 0)
    )
    return masked_mean(nats, mask)


def masked_frame_nce(
    predicted: jax.Array,
    frames: jax.Array,
    mask: jax.Array,
    valid: jax.Array,
    scale: jax.Array | float = 1.0,
    negatives: jax.Array | None = None,
) -> jax.Array:
    r"""Noise-contrastive estimation of masked frames among the frames of the batch.

    .. math::
      -\sum_p m_p \log \frac{e^{s\, \hat x_p \cdot x_p}}
      {\sum_q v_q\, e^{s\, \hat x_p \cdot x_q}} \Big/ \sum_p m_p

    p and q run over all positions of the batch, as in UniVL's masked-frame model (Luo
    et al. 2020, arXiv:2002.06353). To use only masked frames as negatives, pass
    ``mask`` as ``valid``.

    Args:
        predicted: x-hat, [B, T, D], the model's outputs.
        frames: x, [B, T, D], the features before masking.
        mask: m, bool [B, T], true at masked frames; padding is ignored.
        valid: v, bool [B, T], true at candidate frames, false at padding.
        scale: s, an inverse temperature.
        negatives: bool [B, B], false for pairs of rows that show the same clip, whose
            frames are identical and not negatives of each other. The frames within a
            row are always negatives. None: all rows show different clips.

    Returns:
        float32 scalar, nats per frame; 0 if nothing is masked.

    Raises:
        ValueError: if the shapes do not fit together.

    >>> features, everywhere = jnp.zeros((2, 4, 3)), jnp.ones((2, 4), bool)
    >>> loss = masked_frame_nce(features, features, everywhere, everywhere)
    >>> round(float(loss), 4), round(float(jnp.log(8)), 4)
    (2.0794, 2.0794)
    """
    if not (
        predicted.shape == frames.shape
        and predicted.ndim == 3
        and mask.shape == valid.shape == frames.shape[:2]
    ):
        raise ValueError(
            f"predicted {predicted.shape}, frames {frames.shape}, mask {mask.shape} "
            f"and valid {valid.shape} must be [B, T, D], [B, T, D], [B, T] and [B, T]"
        )
    size, length = mask.shape
    if negatives is not None and negatives.shape != (size, size):
        raise ValueError(f"negatives {negatives.shape} must be [{size}, {size}]")
    mask = mask & valid
    width = frames.shape[-1]
    predicted = jnp.where(mask[..., None], predicted, 0).reshape(-1, width)
    frames = jnp.where(valid[..., None], frames, 0).reshape(-1, width)
    logits = jnp.matmul(predicted, frames.T, preferred_element_type=jnp.float32)
    logits = jnp.asarray(scale, jnp.float32) * logits
    own = jnp.diagonal(logits)
    logits = jnp.where(valid.reshape(1, -1), logits, -jnp.inf)
    if negatives is not None:
        rows = jnp.arange(size * length) // length
        apart = (negatives | jnp.eye(size, dtype=bool))[rows[:, None], rows[None, :]]
        logits = jnp.where(apart, logits, -jnp.inf)
    nats = jax.nn.logsumexp(logits, axis=1) - own
    return masked_mean(nats, mask.reshape(-1))


def draw_mask(key: jax.Array, maskable: jax.Array, rate: float = 0.15) -> jax.Array:
    """Samples positions to mask, each with a probability, and at least one per row.

    Args:
        key: random key.
        maskable: bool [B, S], for example false at padding and special tokens.
        rate: probability of a position, 0 to 1.

    Returns:
        bool [B, S]; all false only in rows without maskable positions.

    >>> maskable = jnp.array([[True, False], [False, False]])
    >>> draw_mask(jax.random.key(0), maskable, rate=0.0).tolist()
    [[True, False], [False, False]]
    """
    draws = jax.random.uniform(key, maskable.shape)
    lowest = jnp.argmin(jnp.where(maskable, draws, 2.0), axis=1)
    first = jax.nn.one_hot(lowest, maskable.shape[1], dtype=bool)
    return maskable & (first | (draws < rate))


def mask_tokens(
    key: jax.Array,
    tokens: jax.Array,
    mask_id: int,
    vocabulary_size: int,
    special_ids: Collection[int] = (),
    rate: float = 0.15,
) -> tuple[jax.Array, jax.Array]:
    """Masks tokens as BERT does (Devlin et al. 2018, arXiv:1810.04805, section 3.1).

    Of the positions that `draw_mask` samples, 80% become ``mask_id``, 10% a random
    token that is not special, and 10% are unchanged.

    Args:
        key: random key.
        tokens: int [B, S].
        mask_id: id of the mask token, never sampled as a random token.
        vocabulary_size: K, size of the vocabulary.
        special_ids: ids of padding, start, end and separator tokens, which are never
            masked and never sampled.
        rate: probability of a position, 0 to 1.

    Returns:
        The model's input, int [B, S], and the mask, bool [B, S], true where ``tokens``
        are to be predicted.

    Raises:
        ValueError: if every id is special.

    >>> tokens = jnp.array([[1, 7, 8, 2, 0]])
    >>> inputs, mask = mask_tokens(
    ...     jax.random.key(0), tokens, mask_id=3, vocabulary_size=10,
    ...     special_ids=(0, 1, 2), rate=1.0)
    >>> mask.tolist()
    [[False, True, True, False, False]]
    """
    special = np.unique([mask_id, *special_ids])
    ordinary = np.setdiff1d(np.arange(vocabulary_size), special)
    if not len(ordinary):
        raise ValueError(
            f"all {vocabulary_size} ids are special; none is left to be drawn"
        )
    where_key, how_key, which_key = jax.random.split(key, 3)
    mask = draw_mask(where_key, ~jnp.isin(tokens, special), rate)
    how = jax.random.uniform(how_key, tokens.shape)
    which = jax.random.randint(which_key, tokens.shape, 0, len(ordinary))
    drawn = jnp.asarray(ordinary, tokens.dtype)[which]
    corrupted = jnp.where(how < 0.8, mask_id, jnp.where(how < 0.9, drawn, tokens))
    return jnp.where(mask, corrupted, tokens).astype(tokens.dtype), mask
