"""Log-likelihoods of given answers, with a single pass over image and prompt.

Choosing among known answers is constrained decoding without search: all are scored, and
an answer that free decoding would never produce can still be the most likely.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from meta_opt.models.decoder import Decoder
from meta_opt.models.generative import Generative, Prefix


def answer_log_likelihoods(
    model: Generative,
    image: jax.Array | np.ndarray,
    prompt: jax.Array | np.ndarray | None,
    answers: jax.Array | np.ndarray,
) -> jax.Array:
    r"""Log-likelihood of each answer to each image and prompt.

    .. math::
      \log p(a_k \mid x_b) = \sum_s \log p(a_{ks} \mid x_b, a_{k1}, ..., a_{k,s-1}),

    over the tokens that are not padding. The end token is included, so that "dress"
    competes with "dress shoes"; there is no length normalisation.

    Args:
        model: with adapters or without.
        image: [B, h, w, 3], uint8 or float in [0, 1].
        prompt: int [B, any], padded anywhere; None for no prompt.
        answers: int [K, S], padded at the end, the same for all images.

    Returns:
        float32 [B, K], nats.

    Raises:
        ValueError: answers of another shape than [K, S], an answer without tokens, or
            other shapes that do not fit the model.
    """
    answers = np.asarray(answers)
    if answers.ndim != 2 or not answers.size:
        raise ValueError(f"answers have shape {answers.shape} and must be [K, S]")
    if not (answers != model.config.pad_id).any(axis=1).all():
        raise ValueError("an answer has no tokens but padding")
    graphdef, params = nnx.split(model)
    return _likelihoods(graphdef, params, image, prompt, answers)


@functools.partial(jax.jit, static_argnums=0)
def _likelihoods(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    image: jax.Array,
    prompt: jax.Array | None,
    answers: jax.Array,
) -> jax.Array:
    model: Generative = nnx.merge(graphdef, params)
    prefix = model.prefix(image, prompt)
    return score_answers(model.decoder, prefix, answers, model.config.pad_id)


def score_answers(
    decoder: Decoder, prefix: Prefix, answers: jax.Array, pad_id: int
) -> jax.Array:
    """Log-likelihoods of continuations of a prefix; call under `jax.jit`.

    The prefix is processed once and its keys and values are cached; answers are
    processed one after another, so that only the logits [B, S, vocabulary] of one are
    in memory.

    Args:
        decoder: the token decoder.
        prefix: prefix of B rows.
        answers: int [K, S], padded at the end.
        pad_id: id of the padding token.

    Returns:
        float32 [B, K], nats.
    """
    batch, length, _ = prefix.x.shape
    tokens = jnp.asarray(answers)
    # The last token is never an input, so it needs no cache slot.
    read = tokens.shape[1] - 1
    places = length + read
    known = jnp.pad(prefix.real, ((0, 0), (0, read)))
    hidden, cache = decoder(
        prefix.x,
        jnp.cumsum(prefix.real, axis=1) - 1,
        jnp.broadcast_to(known[:, None], (batch, length, places)),
        decoder.empty_cache(batch, places),
    )
    assert cache is not None
    first = prefix.at_last(hidden)
    positions = jnp.sum(prefix.real, axis=1)[:, None] + jnp.arange(read)[None]
    # Causal attention to the prefix and the answer; padding is at the end.
    behind = jnp.arange(places)[None, :] <= length + jnp.arange(read)[:, None]
    mask = (jnp.arange(places) >= length)[None, None] & behind[None] | known[:, None]

    def score(answer: jax.Array) -> jax.Array:
        """Log-likelihood of ``answer`` int [S] after every row: [B]."""
        states = first
        if read:
            rows = jnp.broadcast_to(answer[None, :-1], (batch, read))
            after, _ = decoder(decoder.embed(rows), positions, mask, cache, length)
            states = jnp.concatenate([first, after], axis=1)
        targets = jnp.broadcast_to(answer[None], (batch, len(answer)))
        nats = optax.softmax_cross_entropy_with_integer_labels(
            decoder.logits(states), targets
        )
        return -jnp.sum(nats * (targets != pad_id), axis=1)

    return jax.lax.map(score, tokens).T
