"""Next-token cross-entropy that does not materialise the logits of all tokens."""

import functools

import jax
import jax.numpy as jnp
import optax


def captioning_loss(
    hidden: jax.Array,
    embedding: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    chunk_length: int = 16,
) -> jax.Array:
    r"""Mean cross-entropy of tokens under the softmax of ``hidden @ embedding.T``.

    .. math::
      -\sum_{bs} m_{bs} \log \mathrm{softmax}(E h_{bs})_{t_{bs}}
      \Big/ \sum_{bs} m_{bs}.

    Logits are computed for ``chunk_length`` positions of each row at a time, and
    recomputed in the backward pass: [B, chunk_length, K] numbers in float32 rather than
    [B, S, K]. Chunks are taken along S, so that a batch sharded over devices stays
    sharded.

    Args:
        hidden: h, [B, S, D], the hidden state that predicts each target.
        embedding: E, [K, D], cast to the dtype of ``hidden``.
        targets: t, int [B, S], token ids.
        mask: m, bool [B, S], false at padding.
        chunk_length: number of positions of a row per chunk.

    Returns:
        float32 scalar, nats per token; 0 if there are no tokens.

    Raises:
        ValueError: if shapes are inconsistent, or ``chunk_length`` is below 1.

    >>> hidden, embedding = jnp.zeros((2, 3, 4)), jnp.ones((8, 4))
    >>> targets = jnp.array([[1, 2, 0], [3, 0, 0]])
    >>> loss = captioning_loss(hidden, embedding, targets, targets > 0)
    >>> round(float(loss), 4), round(float(jnp.log(8)), 4)
    (2.0794, 2.0794)
    """
    batch, length, _ = hidden.shape
    if targets.shape != (batch, length) or mask.shape != targets.shape:
        raise ValueError(
            f"hidden {hidden.shape}, targets {targets.shape} and mask {mask.shape} "
            "must be [B, S, D], [B, S] and [B, S]"
        )
    if chunk_length < 1:
        raise ValueError(f"chunk_length={chunk_length} must be at least 1")
    chunk_length = min(chunk_length, max(length, 1))

    def chunks(x: jax.Array) -> jax.Array:
        """Reshapes [B, S, ...] to [chunks, B, chunk_length, ...], padded with zeros."""
        rest = [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, [(0, 0), (0, -length % chunk_length), *rest])
        return x.reshape(batch, -1, chunk_length, *x.shape[2:]).swapaxes(0, 1)

    # Cast inside the scan, so that the embedding's gradient accumulates in its own
    # dtype.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add_chunk(
        total: jax.Array, chunk: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, None]:
        h, t, m = chunk
        logits = jnp.einsum(
            "bsd,kd->bsk",
            h,
            embedding.astype(h.dtype),
            preferred_element_type=jnp.float32,
        )
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, t)
        return total + jnp.sum(jnp.where(m, nats, 0)), None

    parts = (chunks(hidden), chunks(targets), chunks(mask))
    total, _ = jax.lax.scan(add_chunk, jnp.float32(0), parts)
    return total / jnp.maximum(jnp.sum(mask), 1)
