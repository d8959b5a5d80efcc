"""Contrastive loss with several candidate captions for each video."""

import jax
import jax.numpy as jnp


def mil_nce_loss(similarity: jax.Array) -> jax.Array:
    r"""MIL-NCE (Miech et al. 2020, arXiv:1912.06430, equation 1).

    Of the N candidate captions of a video only some need to match:

    .. math::
      -\frac{1}{B} \sum_i \log \frac{\sum_n e^{s_{iin}}}
      {\sum_{jn} e^{s_{ijn}} + \sum_{j \ne i} \sum_n e^{s_{jin}}}.

    Args:
        similarity: s, [B, B, N], scaled similarities; entry i, j, n is that of video i
            and the n-th caption of video j.

    Returns:
        float32 scalar, nats per video; 0 for a batch of one.

    Raises:
        ValueError: if ``similarity`` is not [B, B, N].

    >>> round(float(mil_nce_loss(jnp.zeros((2, 2, 5)))), 4)  # log 3: one group of three
    1.0986
    """
    size = len(similarity)
    if similarity.ndim != 3 or similarity.shape[1] != size:
        raise ValueError(f"similarity {similarity.shape} must be [B, B, N]")
    scores = similarity.astype(jnp.float32)
    positives = jnp.diagonal(scores)  # [N, B]
    own = jnp.eye(size, dtype=bool)[..., None]
    by_video = jnp.where(own, -jnp.inf, scores.swapaxes(0, 1))
    everything = jnp.concatenate([scores, by_video], axis=1).reshape(size, -1)
    return jnp.mean(
        jax.nn.logsumexp(everything, axis=1) - jax.nn.logsumexp(positives, axis=0)
    )
