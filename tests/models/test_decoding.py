"""Answers from the cache are those that whole forward passes would give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from generative_small import SMALL, logits, small_batch, small_model

from meta_opt.models.decoder import Decoder
from meta_opt.models.decoding import DecodingConfig, generate

T = 6


def uncached(model, batch, choose):
    """Token by token by whole forward passes, each over all that is written."""
    size = len(batch["image"])
    text, ended = np.zeros((size, T), np.int32), np.zeros(size, bool)
    seen = []
    for step in range(T):
        at = np.array(logits(model, {**batch, "text": text})[:, step])
        at[:, SMALL.pad_id] = -np.inf
        seen.append(at)
        text[:, step] = np.where(ended, SMALL.pad_id, choose(at, step))
        ended |= text[:, step] == SMALL.end_id
    return text, np.stack(seen, axis=1)


def ending(model):
    """The same, with an end token that comes often."""
    embedding = model.decoder.tokens.embedding
    embedding[SMALL.end_id] = 2 * embedding[SMALL.end_id]
    return model


def test_greedy_answers_are_those_of_whole_forward_passes():
    model, batch = ending(small_model()), small_batch(8)
    expected, seen = uncached(model, batch, lambda at, _: at.argmax(-1))
    found = generate(
        model, batch["image"], batch["prompt"], DecodingConfig(max_tokens=T)
    )
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)
    # Nothing of this is a tie, rows differ, and some end before others.
    top = np.sort(seen, axis=-1)
    assert np.min(top[..., -1] - top[..., -2]) > 1e-4
    assert len({tuple(row) for row in expected}) > 6
    lengths = (expected != SMALL.pad_id).sum(axis=1)
    assert lengths.min() == 1 and lengths.max() == T


def test_cached_logits_are_those_of_whole_forward_passes():
    model, batch = small_model(), small_batch()
    expected = logits(model, batch)

    @nnx.jit
    def cached(model):
        decoder, prefix = model.decoder, model.prefix(batch["image"], batch["prompt"])
        length = prefix.x.shape[1]
        known = jnp.pad(prefix.real, ((0, 0), (0, 5)))
        counts = prefix.real.sum(axis=1)
        hidden, cache = decoder(
            prefix.x,
            jnp.cumsum(prefix.real, axis=1) - 1,
            jnp.broadcast_to(known[:, None], (4, length, length + 5)),
            decoder.empty_cache(4, length + 5),
        )
        found = [decoder.logits(prefix.at_last(hidden))]
        for i in range(5):
            known = known.at[:, length + i].set(True)
            hidden, cache = decoder(
                decoder.embed(batch["text"][:, i : i + 1]),
                (counts + i)[:, None],
                known[:, None],
                cache,
                length + i,
            )
            found.append(decoder.logits(hidden))
        return jnp.concatenate(found, axis=1)

    # After the end of a text, what is fed here is padding that whole passes mask.
    real = batch["text"] != SMALL.pad_id
    np.testing.assert_allclose(cached(model)[real], expected[real], atol=1e-5)
    assert np.std(expected) > 0.3


def test_a_row_is_answered_as_if_alone_and_padding_may_be_anywhere():
    model, batch = small_model(), small_batch()
    config = DecodingConfig(max_tokens=T)
    together = generate(model, batch["image"], batch["prompt"], config)
    row = 1
    alone = generate(
        model, batch["image"][row : row + 1], batch["prompt"][row : row + 1, :3], config
    )
    np.testing.assert_array_equal(alone[0], together[row])
    moved = batch["prompt"][row : row + 1].take([3, 0, 4, 1, 2], axis=1)
    assert moved[0, 0] == moved[0, 2] == 0
    found = generate(model, batch["image"][row : row + 1], moved, config)
    np.testing.assert_array_equal(found[0], together[row])


def test_no_prompt_is_an_empty_one():
    model, batch = small_model(), small_batch()
    config = DecodingConfig(max_tokens=2)
    found = generate(model, batch["image"], None, config)
    empty = generate(model, batch["image"], np.zeros((4, 2), np.int32), config)
    np.testing.assert_array_equal(found, empty)


def test_drawing_follows_the_softmax():
    model, batch = small_model(), small_batch(1)
    image, prompt = (batch[k].repeat(4000, axis=0) for k in ("image", "prompt"))
    config = DecodingConfig(max_tokens=1, temperature=1.5)
    found = generate(model, image, prompt, config, jax.random.key(0))
    at = np.array(logits(model, batch)[0, 0])
    at[SMALL.pad_id] = -np.inf
    expected = np.asarray(jax.nn.softmax(at / 1.5))
    share = np.bincount(np.asarray(found)[:, 0], minlength=32) / 4000
    np.testing.assert_allclose(
        share, expected, atol=4 * np.sqrt(0.25 / 4000), err_msg=str(share)
    )
    # Colder, it is the likeliest; another key draws others.
    cold = DecodingConfig(max_tokens=1, temperature=1e-4)
    one = generate(model, image[:2], prompt[:2], cold, jax.random.key(1))
    np.testing.assert_array_equal(one, np.full((2, 1), at.argmax()))
    other = generate(model, image, prompt, config, jax.random.key(1))
    assert not np.array_equal(other, found)


@pytest.mark.parametrize(("end", "read"), [(1, 0), (2, 4)])
def test_it_stops_when_all_rows_have_ended(monkeypatch, end, read):
    model, batch = small_model(end_id=end), small_batch()
    # Hidden states are zero then, and the first token but padding the likeliest.
    scale = model.decoder.norm.scale
    scale[...] = jnp.full_like(scale[...], -1.0)
    steps, embed = [], Decoder.embed

    def counted(self, tokens):
        if tokens.shape[1] == 1:
            jax.debug.callback(lambda: steps.append(1))
        return embed(self, tokens)

    monkeypatch.setattr(Decoder, "embed", counted)
    found = generate(model, batch["image"], batch["prompt"], DecodingConfig(5))
    expected = [1] + [1 if end == 2 else SMALL.pad_id] * 4
    np.testing.assert_array_equal(found, [expected] * 4)
    jax.effects_barrier()
    assert len(steps) == read


def test_bfloat16_writes_tokens_close_to_the_likeliest():
    types = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    model, batch = small_model(**types), small_batch()
    found = generate(model, batch["image"], batch["prompt"], DecodingConfig(3))
    at = np.array(logits(small_model(), {**batch, "text": np.asarray(found)}))
    at[..., SMALL.pad_id] = -np.inf
    chosen = np.take_along_axis(at, np.asarray(found)[..., None], axis=-1)[..., 0]
    assert np.all(at.max(axis=-1) - chosen < 0.1)


def test_errors():
    model, batch = small_model(), small_batch()
    with pytest.raises(ValueError, match=r"temperature=0\.5 needs a key"):
        generate(model, batch["image"], None, DecodingConfig(2, 0.5))
    with pytest.raises(ValueError, match=r"temperature=-1 must not be negative"):
        DecodingConfig(2, -1)
    with pytest.raises(ValueError, match=r"prompt has shape \(3, 5\); for 4 images"):
        generate(model, batch["image"], batch["prompt"][:3])
