"""Losses of video-text models against sums written out in NumPy, float64."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from meta_opt.losses.captioning import captioning_loss
from meta_opt.losses.contrastive import clip_loss, softmax_pair_loss
from meta_opt.losses.masked import (
    draw_mask,
    mask_tokens,
    masked_cross_entropy,
    masked_frame_nce,
    masked_mean,
)
from meta_opt.losses.matching import (
    hard_negatives,
    matching_loss,
    negative_pairs,
    rolled_negatives,
)
from meta_opt.losses.max_margin import max_margin_loss
from meta_opt.losses.mil_nce import mil_nce_loss

# One program of each function, instead of one of each of its operations.
jit = functools.cache(jax.jit)
some = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**16)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def naive_max_margin(s, margin):
    total, size = 0.0, len(s)
    for i in range(size):
        for j in range(size):
            if i != j:
                total += max(0.0, margin + s[i, j] - s[i, i])
                total += max(0.0, margin + s[i, j] - s[j, j])
    return total / size**2


def naive_cross_entropy(logits, targets, mask):
    nats = [
        np.log(np.exp(row).sum()) - row[target]
        for row, target, on in zip(
            logits.reshape(-1, logits.shape[-1]).astype(np.float64),
            targets.ravel(),
            mask.ravel(),
            strict=True,
        )
        if on
    ]
    return np.mean(nats) if nats else 0.0


def naive_frame_nce(predicted, frames, mask, valid, scale):
    batch, time, _ = frames.shape
    places = [(b, t) for b in range(batch) for t in range(time)]
    nats = []
    for p in places:
        if mask[p] and valid[p]:
            scores = {
                q: scale * float(predicted[p] @ frames[q]) for q in places if valid[q]
            }
            nats.append(np.log(sum(np.exp(s) for s in scores.values())) - scores[p])
    return np.mean(nats) if nats else 0.0


def naive_mil_nce(s):
    size, total = len(s), 0.0
    e = np.exp(s.astype(np.float64))
    for i in range(size):
        others = sum(e[j, i].sum() for j in range(size) if j != i)
        total -= np.log(e[i, i].sum() / (e[i].sum() + others))
    return total / size


def naive_matching(logits, matches, mask):
    nats = [
        np.log1p(np.exp(-z if y else z))
        for z, y, on in zip(logits.astype(np.float64), matches, mask, strict=True)
        if on
    ]
    return np.mean(nats) if nats else 0.0


# The numbers


@pytest.mark.parametrize("margin", [0.0, 0.1, 1.0])
def test_max_margin_is_the_sum_over_negatives(margin):
    s = normal(0, 6, 6)
    np.testing.assert_allclose(
        jit(max_margin_loss)(s, margin), naive_max_margin(s, margin), rtol=1e-6
    )


def test_max_margin_has_univls_gradient_and_its_value_but_for_a_constant():
    s, margin = jnp.asarray(normal(1, 5, 5)), 0.3

    def with_diagonal(s):
        own = jnp.diagonal(s)
        return jnp.mean(
            jax.nn.relu(margin + s - own[:, None])
            + jax.nn.relu(margin + s - own[None, :])
        )

    ours, theirs = (
        jax.jit(jax.value_and_grad(f))(s)
        for f in (functools.partial(max_margin_loss, margin=margin), with_diagonal)
    )
    np.testing.assert_allclose(theirs[0] - ours[0], 2 * margin / 5, rtol=1e-5)
    np.testing.assert_allclose(theirs[1], ours[1], atol=1e-7)


# Rows 0 and 2 are captions of one clip.
CLIPS = jnp.array([3, 1, 3, 7])


def test_pairs_of_one_clip_or_of_equal_texts_are_no_negatives():
    text = jnp.array([[5, 6], [5, 7], [8, 9], [5, 6]])
    expected = np.array(
        # The texts of rows 0 and 3 are equal, rows 0 and 2 are of one clip.
        [[0, 1, 0, 0], [1, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]]
    )
    np.testing.assert_array_equal(negative_pairs(CLIPS, text), expected)
    np.testing.assert_array_equal(negative_pairs(jnp.arange(3)), ~np.eye(3, dtype=bool))


def test_losses_leave_out_what_is_no_negative():
    """Sums over the negatives alone, by hand."""
    s, negatives = normal(10, 4, 4), np.asarray(negative_pairs(CLIPS))
    margin, pairs = 0.5, list(zip(*np.nonzero(negatives), strict=True))
    assert len(pairs) == 10
    total = sum(
        max(0, margin + s[i, j] - s[i, i]) + max(0, margin + s[i, j] - s[j, j])
        for i, j in pairs
    )
    found = max_margin_loss(s, margin, negatives)
    np.testing.assert_allclose(found, total / 16, rtol=1e-6)

    kept = np.exp(s.astype(np.float64)) * (negatives | np.eye(4, dtype=bool))
    rows, columns = np.log(kept.sum(axis=1)), np.log(kept.sum(axis=0))
    total = np.mean((rows + columns) / 2 - np.diagonal(s))
    value, grad = jax.value_and_grad(softmax_pair_loss)(jnp.asarray(s), negatives)
    np.testing.assert_allclose(value, total, rtol=1e-6)
    # Nothing pulls the two captions' clips apart, and nothing is NaN.
    assert grad[0, 2] == grad[2, 0] == 0 and np.isfinite(grad).all()

    predicted, frames = normal(11, 4, 3, 5), normal(12, 4, 3, 5)
    frames[2] = frames[0]
    mask = valid = np.ones((4, 3), bool)
    logits = predicted.reshape(12, 5) @ frames.reshape(12, 5).T
    other = np.repeat(np.repeat(negatives | np.eye(4, dtype=bool), 3, 0), 3, 1)
    total = np.log((np.exp(logits) * other).sum(axis=1)) - np.diagonal(logits)
    found = masked_frame_nce(predicted, frames, mask, valid, 1.0, negatives)
    np.testing.assert_allclose(found, total.mean(), rtol=1e-5)


def test_without_negatives_given_every_other_pair_is_one():
    s, everywhere = normal(13, 4, 4), ~np.eye(4, dtype=bool)
    frames, mask = normal(14, 4, 3, 5), np.ones((4, 3), bool)
    for loss, arrays in (
        (lambda *x: max_margin_loss(x[0], 0.1, *x[1:]), (s,)),
        (softmax_pair_loss, (s,)),
        (
            lambda x, *rest: masked_frame_nce(x, x[::-1], mask, mask, 1.0, *rest),
            (frames,),
        ),
    ):
        np.testing.assert_array_equal(loss(*arrays), loss(*arrays, everywhere))
    image, text = normal(15, 4, 6), normal(16, 4, 6)
    np.testing.assert_allclose(
        clip_loss(image, text, 2.0), softmax_pair_loss(2 * image @ text.T), rtol=1e-5
    )


def test_max_margin_is_zero_where_all_pairs_stand_out():
    s = jnp.asarray(2 * np.eye(4), jnp.float32)
    assert jit(max_margin_loss)(s, 1.9) == 0 < jit(max_margin_loss)(s, 2.1)
    assert max_margin_loss(jnp.ones((1, 1))) == 0


def test_masked_cross_entropy_is_the_mean_over_masked_positions():
    logits, rng = normal(2, 3, 7, 11), np.random.default_rng(2)
    targets, mask = rng.integers(0, 11, (3, 7)), rng.random((3, 7)) < 0.4
    assert 0 < mask.sum() < mask.size
    np.testing.assert_allclose(
        jit(masked_cross_entropy)(logits, targets, mask),
        naive_cross_entropy(logits, targets, mask),
        rtol=1e-6,
    )


def test_captioning_is_the_masked_cross_entropy_of_its_logits():
    hidden, embedding, rng = (
        normal(3, 2, 5, 4),
        normal(4, 9, 4),
        np.random.default_rng(3),
    )
    targets, mask = rng.integers(0, 9, (2, 5)), rng.random((2, 5)) < 0.6
    np.testing.assert_allclose(
        jit(masked_cross_entropy)(hidden @ embedding.T, targets, mask),
        jit(captioning_loss)(
            jnp.asarray(hidden), jnp.asarray(embedding), targets, mask
        ),
        rtol=1e-6,
    )


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_masked_frame_nce_is_the_sum_over_frames_of_the_batch(scale):
    predicted, frames = normal(5, 3, 4, 6), normal(6, 3, 4, 6)
    rng = np.random.default_rng(5)
    valid = np.arange(4)[None, :] < np.array([[4], [2], [3]])
    mask = rng.random((3, 4)) < 0.6
    assert (mask & ~valid).any() and (mask & valid).sum() > 2
    np.testing.assert_allclose(
        jit(masked_frame_nce)(predicted, frames, mask, valid, scale),
        naive_frame_nce(predicted, frames, mask, valid, scale),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        jit(masked_frame_nce)(predicted, frames, mask & valid, mask & valid, scale),
        naive_frame_nce(predicted, frames, mask & valid, mask & valid, scale),
        rtol=1e-5,
    )


def test_mil_nce_is_the_sum_over_captions_of_both_sides():
    s = normal(7, 4, 4, 3)
    np.testing.assert_allclose(jit(mil_nce_loss)(s), naive_mil_nce(s), rtol=1e-5)
    assert jit(mil_nce_loss)(jnp.ones((1, 1, 3))) == 0


def test_one_good_caption_of_several_is_enough():
    s = np.full((3, 3, 4), -20.0, np.float32)
    s[np.arange(3), np.arange(3), 2] = 20.0
    assert jit(mil_nce_loss)(s) < 1e-6


def test_matching_is_the_binary_cross_entropy():
    logits, rng = 3 * normal(8, 9), np.random.default_rng(8)
    matches, mask = rng.random(9) < 0.5, rng.random(9) < 0.6
    for counted in (mask, np.ones(9, bool)):
        np.testing.assert_allclose(
            jit(matching_loss)(logits, matches, counted),
            naive_matching(logits, matches, counted),
            rtol=1e-5,
        )
    assert jit(matching_loss)(logits, matches) == jit(matching_loss)(
        logits, matches, np.ones(9, bool)
    )


# Each loss as a function of its first array alone, with what it is given


def all_losses(kept):
    """The losses of random scores; of masks, ``kept`` says what they hold."""
    mask = np.full((2, 3), kept)
    targets = np.array([[0, 3, 1], [2, 2, 4]])
    return {
        "max_margin": (max_margin_loss, normal(0, 4, 4)),
        "mil_nce": (mil_nce_loss, normal(1, 3, 3, 2)),
        "cross_entropy": (
            lambda x: masked_cross_entropy(x, targets, mask),
            normal(2, 2, 3, 5),
        ),
        "frame_nce": (
            lambda x: masked_frame_nce(x, x[::-1], mask, mask),
            normal(3, 2, 3, 4),
        ),
        "frame_nce_of_padding": (
            lambda x: masked_frame_nce(x, x[::-1], ~mask, mask),
            normal(3, 2, 3, 4),
        ),
        "matching": (
            lambda x: matching_loss(x, targets[0] > 0, mask[0]),
            normal(4, 3),
        ),
    }


MASKED = ("cross_entropy", "frame_nce", "frame_nce_of_padding", "matching")


@pytest.mark.parametrize("name", all_losses(True))
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_value_and_gradient_are_finite_in_bfloat16(name, scale):
    loss, x = all_losses(True)[name]
    low = jnp.asarray(scale * x, jnp.bfloat16)
    value, grad = jax.jit(jax.value_and_grad(loss))(low)
    assert value.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    assert np.isfinite(value) and np.isfinite(grad.astype(jnp.float32)).all()
    # Of the same numbers in float32: what follows the cast is computed in float32. Not
    # under jit alone, where XLA may skip roundings to bfloat16.
    for found in (value, loss(low)):
        np.testing.assert_allclose(found, loss(low.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize("name", MASKED)
def test_empty_masks_give_zero_and_no_gradient(name):
    loss, x = all_losses(False)[name]
    value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(x))
    assert value == 0 and not np.any(grad)


def test_nan_where_masked_out_leaves_the_gradient_as_it_is():
    mask = np.array([[True, False, False], [False, True, False]])
    valid = np.array([[True, True, False], [True, True, False]])
    logits, predicted, frames = (normal(i, 2, 3, 4) for i in range(3))
    targets, matches = np.array([[0, 3, 1], [2, 2, 3]]), np.array([True, False, True])

    def total(logits, predicted, frames, pair_logits):
        return (
            masked_cross_entropy(logits, targets, mask)
            + masked_frame_nce(predicted, frames, mask, valid)
            + matching_loss(pair_logits, matches, valid[0])
        )

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))

    def gradients(fill):
        fill = np.float32(fill)
        return gradient(
            np.where(mask[..., None], logits, fill),
            np.where(mask[..., None], predicted, fill),
            np.where(valid[..., None], frames, fill),
            np.where(valid[0], logits[0, :, 0], fill),
        )

    for clean, found in zip(gradients(0.0), gradients(np.nan), strict=True):
        assert np.any(clean)
        np.testing.assert_allclose(found, clean, rtol=1e-6)


@pytest.mark.parametrize("name", ["max_margin", "mil_nce", "cross_entropy", "matching"])
def test_gradients_are_finite_differences(name):
    loss, x = all_losses(True)[name]
    loss, direction = jax.jit(loss), normal(9, *x.shape)
    step = np.float32(1e-2)
    found = np.vdot(jax.grad(loss)(x), direction)
    by_difference = (loss(x + step * direction) - loss(x - step * direction)) / 2 / step
    np.testing.assert_allclose(found, by_difference, rtol=2e-2, atol=1e-3)


# Invariances


@some
@given(seeds)
def test_losses_do_not_depend_on_the_order_of_the_batch(seed):
    order = np.random.default_rng(seed).permutation(5)
    s, several = normal(seed, 5, 5), normal(seed, 5, 5, 2)
    frames, predicted = normal(seed, 5, 3, 4), normal(seed + 1, 5, 3, 4)
    mask, valid = (normal(seed + i, 5, 3) > -0.5 for i in (2, 3))
    for loss, first, second in (
        (max_margin_loss, (s,), (s[order][:, order],)),
        (max_margin_loss, (s,), (s.T,)),
        (mil_nce_loss, (several,), (several[order][:, order][..., ::-1],)),
        (
            masked_frame_nce,
            (predicted, frames, mask, valid),
            (predicted[order], frames[order], mask[order], valid[order]),
        ),
    ):
        found, expected = (jit(loss)(*arrays) for arrays in (first, second))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@some
@given(seeds, st.sampled_from([0.0, 1e30, np.inf, np.nan]))
def test_positions_that_are_masked_out_change_nothing(seed, junk):
    logits, predicted, frames = (normal(seed + i, 2, 3, 4) for i in range(3))
    targets = np.random.default_rng(seed).integers(0, 4, (2, 3))
    mask = normal(seed + 3, 2, 3) > -0.5

    def longer(x, fill):
        return np.concatenate([x, np.full((2, 2, *x.shape[2:]), fill, x.dtype)], axis=1)

    off = longer(mask, False)
    np.testing.assert_allclose(
        jit(masked_cross_entropy)(longer(logits, junk), longer(targets, -100), off),
        jit(masked_cross_entropy)(logits, targets, mask),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        jit(masked_frame_nce)(longer(predicted, junk), longer(frames, junk), off, off),
        jit(masked_frame_nce)(predicted, frames, mask, mask),
        rtol=1e-5,
    )


def test_mean_of_nothing_is_zero():
    assert masked_mean(jnp.array([jnp.nan]), jnp.array([False])) == 0


# Masks and negatives


@some
@given(seeds, st.sampled_from([0.0, 0.15, 1.0]))
def test_every_row_that_can_be_masked_is_masked_somewhere(seed, rate):
    maskable = normal(seed, 8, 5) > 0.8
    mask = np.asarray(jit(draw_mask)(jax.random.key(seed), maskable, rate))
    assert not (mask & ~maskable).any()
    assert (mask.any(axis=1) == maskable.any(axis=1)).all()
    if rate == 0:
        assert (mask.sum(axis=1) == maskable.any(axis=1)).all()
    if rate == 1:
        assert (mask == maskable).all()


def test_tokens_are_masked_in_berts_proportions():
    tokens = np.random.default_rng(0).integers(0, 50, (200, 200), np.int32)
    special = (0, 1, 2)
    inputs, mask = (
        np.asarray(x)
        for x in jax.jit(mask_tokens, static_argnums=(2, 3, 4))(
            jax.random.key(0), jnp.asarray(tokens), 3, 50, special
        )
    )
    assert inputs.dtype == tokens.dtype
    ordinary = tokens > 3
    assert not mask[~ordinary].any()
    np.testing.assert_array_equal(inputs[~mask], tokens[~mask])
    # Of some 5,500 masked tokens; three standard deviations.
    assert mask[ordinary].mean() == pytest.approx(0.15, abs=0.006)
    before, after = tokens[mask], inputs[mask]
    assert (after == 3).mean() == pytest.approx(0.8, abs=0.017)
    # A random token is the old one in one of 46 cases.
    assert (after == before).mean() == pytest.approx(0.1 + 0.1 / 46, abs=0.013)
    drawn = after[(after != 3) & (after != before)]
    assert set(drawn) == set(range(4, 50))


def test_masks_are_a_function_of_the_key():
    tokens = jnp.asarray(np.random.default_rng(1).integers(4, 50, (4, 64)))
    masked = jax.jit(lambda key: mask_tokens(key, tokens, 3, 50, rate=0.5)[0])
    first, again, other = (masked(jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_hard_negatives_are_drawn_by_their_similarity():
    s = jnp.log(jnp.array([[50.0, 1, 2, 5], [2, 90, 1, 1], [1, 1, 9, 2], [1, 3, 4, 9]]))
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn, exists = jax.jit(jax.vmap(hard_negatives, in_axes=(0, None)))(keys, s)
    assert np.asarray(exists).all()
    shares = np.stack([np.bincount(c, minlength=4) for c in np.asarray(drawn).T]) / 4000
    weights = np.exp(np.asarray(s)) * (1 - np.eye(4))
    # Three standard deviations of a share are below 0.024.
    np.testing.assert_allclose(
        shares, weights / weights.sum(axis=1, keepdims=True), atol=0.024
    )
    assert (np.diagonal(shares) == 0).all()


@some
@given(seeds)
def test_hard_negatives_never_match(seed):
    groups = np.random.default_rng(seed).integers(0, 3, 6)
    positives = groups[:, None] == groups[None, :]
    drawn, exists = jit(hard_negatives)(
        jax.random.key(seed), normal(seed, 6, 6), positives
    )
    assert (np.asarray(exists) == ~positives.all(axis=1)).all()
    assert not positives[np.arange(6), drawn][np.asarray(exists)].any()


def test_a_batch_of_one_has_no_hard_negative():
    _, exists = hard_negatives(jax.random.key(0), jnp.ones((1, 1)))
    assert exists.tolist() == [False]


@pytest.mark.parametrize("shift", [1, 2, -1, 6])
def test_rolled_negatives_are_a_permutation_without_fixed_points(shift):
    drawn = np.asarray(rolled_negatives(5, shift))
    assert sorted(drawn) == list(range(5)) and (drawn != np.arange(5)).all()


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: max_margin_loss(jnp.ones((2, 3))), r"\(2, 3\) must be \[B, B\]"),
        (
            lambda: max_margin_loss(jnp.ones((2, 2)), 0.1, jnp.ones((3, 3), bool)),
            r"negatives \(3, 3\) must have the shape of similarity \(2, 2\)",
        ),
        (
            lambda: softmax_pair_loss(jnp.ones((2, 2)), jnp.ones((3, 3), bool)),
            r"negatives \(3, 3\) must be \[B, B\]",
        ),
        (
            lambda: masked_frame_nce(
                *(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4))),
                *(jnp.ones((2, 3), bool), jnp.ones((2, 3), bool)),
                negatives=jnp.ones((3, 3), bool),
            ),
            r"negatives \(3, 3\) must be \[2, 2\]",
        ),
        (lambda: mil_nce_loss(jnp.ones((2, 3, 1))), r"must be \[B, B, N\]"),
        (lambda: mil_nce_loss(jnp.ones((2, 2))), r"must be \[B, B, N\]"),
        (
            lambda: masked_cross_entropy(
                jnp.ones((2, 3, 4)), jnp.ones((2, 4), int), jnp.ones((2, 3), bool)
            ),
            r"targets \(2, 4\)",
        ),
        (
            lambda: masked_frame_nce(
                jnp.ones((2, 3, 4)),
                jnp.ones((2, 3, 5)),
                jnp.ones((2, 3), bool),
                jnp.ones((2, 3), bool),
            ),
            r"frames \(2, 3, 5\)",
        ),
        (
            lambda: matching_loss(jnp.ones(3), jnp.ones(2, bool)),
            r"matches \(2,\)",
        ),
        (lambda: rolled_negatives(1), "shift=1 pairs each of 1"),
        (lambda: rolled_negatives(4, 8), "shift=8 pairs each of 4"),
        (
            lambda: hard_negatives(jax.random.key(0), jnp.ones((2, 3))),
            r"must be \[B, B\]",
        ),
        (
            lambda: mask_tokens(jax.random.key(0), jnp.ones((1, 1), int), 0, 2, (1,)),
            "all 2 ids are special",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
