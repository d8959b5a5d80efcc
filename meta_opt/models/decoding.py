"""Writing answers: image and prompt are read once, then token after token is written.

Keys and values of what was read are kept. All shapes are fixed beforehand, and the loop
ends when every row has ended: one program.
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
    """How tokens are chosen, and how many.

    Attributes:
        max_tokens: longest answer, the token that ends it counted.
        temperature: 0 takes the likeliest token; above it, tokens are drawn from the
            softmax of the logits over the temperature.
    """

    max_tokens: int = 32
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for no tokens and a negative temperature.

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
    """Writes an answer to each image and prompt; compiled once for each shape.

    Rows do not see each other: a row's answer is the one that it would get alone.

    Args:
        model: with adapters or without.
        image: [B, h, w, 3], uint8 or float in [0, 1].
        prompt: int [B, any], padded anywhere; None for no prompt.
        config: how.
        key: for drawing tokens; not needed at temperature 0.

    Returns:
        Token ids, int32 [B, max_tokens]: up to and with the token that ends the answer,
        then padding.

    Raises:
        ValueError: a temperature above 0 without a key; shapes that are not the
            model's.
    """
    config = config or DecodingConfig()
    if config.temperature and key is None:
        raise ValueError(f"temperature={config.temperature} needs a key to draw with")
    graphdef, params = nnx.split(model)
    return _generate(graphdef, config, params, image, prompt, key)


class _Progress(NamedTuple):
    """What the loop carries: ``step`` tokens are written in ``tokens`` [B, T]."""

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
    """Writes what follows a prefix; to be called under `jax.jit`.

    Args:
        decoder: of the tokens.
        prefix: what it reads first.
        pad_id: token of the padding.
        end_id: token that ends an answer.
        config: how.
        key: for drawing tokens.

    Returns:
        As `generate`.
    """
    batch, length, _ = prefix.x.shape
    # The last token is not read, so it needs no place.
    places = length + config.max_tokens - 1
    known = jnp.pad(prefix.real, ((0, 0), (0, places - length)))
    counts = jnp.sum(prefix.real, axis=1)

    def choose(progress: _Progress, hidden: jax.Array) -> _Progress:
        """Writes the token that follows from ``hidden`` [B, 1, D]."""
        step, tokens, ended, cache = progress
        # Padding is not read, so it must not be written before the end.
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
        """Reads the last token that was written, and writes the next."""
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
