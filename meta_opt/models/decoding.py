"""Autoregressive decoding with a key-value cache.

Image and prompt are processed once. All shapes are static, and the loop stops when
every row has ended: one compiled program.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models.decoder import Decoder, KeyValues
from meta_opt.models.generative import Generative, Prefix


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """Sampling settings.

    Attributes:
        max_tokens: largest number of tokens of an answer, including the end token.
        temperature: softmax temperature of sampling; 0 for greedy decoding.
    """

    max_tokens: int = 32
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for ``max_tokens`` below 1 and a negative temperature.

        >>> DecodingConfig(max_tokens=0)
        Traceback (most recent call last):
        ValueError: max_tokens=0 must be at least 1
        """
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens} must be at least 1")
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must not be negative")


def generate(
    model: Generative,
    image: jax.Array | np.ndarray,
    prompt: jax.Array | np.ndarray | None = None,
    config: DecodingConfig | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Decodes an answer for each image and prompt; compiled once per shape.

    Rows are independent of each other: each has the same answer as on its own.

    Args:
        model: a model with or without adapters.
        image: [B, h, w, 3], uint8 or float in [0, 1].
        prompt: int [B, any], padded anywhere; None for no prompt.
        config: sampling settings.
        key: random key of the sampling; not needed at temperature 0.

    Returns:
        Token ids, int32 [B, max_tokens], up to and including the end token, then
        padding.

    Raises:
        ValueError: a temperature above 0 without a key; shapes that do not fit the
            model.
    """
    config = config or DecodingConfig()
    if config.temperature and key is None:
        raise ValueError(f"temperature={config.temperature} needs a key to draw with")
    graphdef, params = nnx.split(model)
    return _generate(graphdef, config, params, image, prompt, key)


class _Progress(NamedTuple):
    """Carry of the loop: ``step`` tokens have been written to ``tokens`` [B, T]."""

    step: jax.Array
    tokens: jax.Array
    ended: jax.Array
    cache: KeyValues | None


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    graphdef: nnx.GraphDef,
    config: DecodingConfig,
    params: nnx.State,
    image: jax.Array,
    prompt: jax.Array | None,
    key: jax.Array | None,
) -> jax.Array:
    model: Generative = nnx.merge(graphdef, params)
    return write(
        model.decoder,
        model.prefix(image, prompt),
        model.config.pad_id,
        model.config.end_id,
        config,
        key,
    )


def write(
    decoder: Decoder,
    prefix: Prefix,
    pad_id: int,
    end_id: int,
    config: DecodingConfig,
    key: jax.Array | None = None,
) -> jax.Array:
    """Decodes a continuation of a prefix; call under `jax.jit`.

    Args:
        decoder: the token decoder.
        prefix: input before the answer.
        pad_id: id of the padding token.
        end_id: id of the token that ends an answer.
        config: sampling settings.
        key: random key of the sampling.

    Returns:
        As `generate`.
    """
    batch, length, _ = prefix.x.shape
    # The last token is never an input, so it needs no cache slot.
    places = length + config.max_tokens - 1
    known = jnp.pad(prefix.real, ((0, 0), (0, places - length)))
    counts = jnp.sum(prefix.real, axis=1)

    def choose(progress: _Progress, hidden: jax.Array) -> _Progress:
        """Samples the next token from ``hidden`` [B, 1, D]."""
        step, tokens, ended, cache = progress
        # Padding is masked as an input, so it must not be generated before the end.
        logits = decoder.logits(hidden)[:, 0].at[:, pad_id].set(-jnp.inf)
        if config.temperature:
            assert key is not None
            now = jax.random.fold_in(key, step)
            token = jax.random.categorical(now, logits / config.temperature)
        else:
            token = jnp.argmax(logits, axis=-1)
        token = jnp.where(ended, pad_id, token).astype(tokens.dtype)
        return _Progress(
            step + 1,
            jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], step, axis=1),
            ended | (token == end_id),
            cache,
        )

    def advance(progress: _Progress) -> _Progress:
        """Processes the last token and samples the next."""
        step = progress.step - 1
        token = jax.lax.dynamic_slice_in_dim(progress.tokens, step, 1, axis=1)
        slot = length + step
        written = (jnp.arange(places) >= length) & (jnp.arange(places) <= slot)
        hidden, cache = decoder(
            decoder.embed(token),
            (counts + step)[:, None],
            (known | written[None])[:, None],
            progress.cache,
            slot,
        )
        return choose(progress._replace(cache=cache), hidden)

    hidden, cache = decoder(
        prefix.x,
        jnp.cumsum(prefix.real, axis=1) - 1,
        jnp.broadcast_to(known[:, None], (batch, length, places)),
        decoder.empty_cache(batch, places),
    )
    start = _Progress(
        jnp.int32(0),
        jnp.full((batch, config.max_tokens), pad_id, jnp.int32),
        jnp.zeros(batch, bool),
        cache,
    )
    return jax.lax.while_loop(
        lambda p: (p.step < config.max_tokens) & ~jnp.all(p.ended),
        advance,
        choose(start, prefix.at_last(hidden)),
    ).tokens
