"""Pruning of visual tokens: against a plain NumPy version, and what must hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_opt.models.token_pruning import (
    PruningConfig,
    cluster,
    merge_static,
    prune_tokens,
    relevant_tokens,
)

FRAMES, PATCHES, WIDTH = 6, 4, 5
CONFIG = PruningConfig(
    "patches", kept_share=0.4, temporal_threshold=0.9, segment_threshold=0.3
)
PRUNE = jax.jit(prune_tokens, static_argnums=2)


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a + 1e-12) * (b @ b + 1e-12)))


def merged_by_hand(x, present, config):
    """Stretch by stretch and place by place, in float64."""
    stretches, last = [], None
    for t in np.flatnonzero(present):
        mean = x[t].mean(axis=0)
        if last is None or cosine(mean, last) < config.segment_threshold:
            stretches.append([])
        stretches[-1].append(int(t))
        last = mean
    leaders = np.full(x.shape[:2], -1)
    for stretch in stretches:
        for p in range(x.shape[1]):
            pairs = [
                cosine(x[s, p], x[t, p]) for s in stretch for t in stretch if s < t
            ]
            static = pairs and np.mean(pairs) >= config.temporal_threshold
            for t in stretch:
                leaders[t, p] = (stretch[0] if static else t) * x.shape[1] + p
    return leaders


def clustered_by_hand(x, leaders, kept, neighbours):
    """Labels of patches by density peaks, in float64."""
    tokens = np.unique(leaders[leaders >= 0])
    means = {t: x[leaders == t].mean(axis=0) for t in tokens}
    square = {
        (a, b): ((means[a] - means[b]) ** 2).mean() for a in tokens for b in tokens
    }
    density, score = {}, {}
    for a in tokens:
        near = sorted(square[a, b] for b in tokens if b != a)[:neighbours]
        density[a] = np.exp(-np.mean(near)) if near else 1.0
    for a in tokens:
        denser = [square[a, b] for b in tokens if density[b] > density[a]]
        apart = min(denser) if denser else max(square.values())
        score[a] = density[a] * apart
    centres = sorted(sorted(tokens, key=lambda a: -score[a])[:kept])
    labels = np.full(len(x), -1)
    for n in np.flatnonzero(leaders >= 0):
        labels[n] = np.argmin([square[leaders[n], c] for c in centres])
    return labels, len(centres)


def random_clip(seed, frames=FRAMES):
    """Some places that hardly change, and a cut in the middle."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(frames, PATCHES, WIDTH))
    x[: frames // 2, :2] = x[0, :2] + 0.05 * rng.normal(size=(frames // 2, 2, WIDTH))
    x[frames // 2 :, 1:] = x[-1, 1:] + 0.05 * rng.normal(
        size=(frames - frames // 2, 3, WIDTH)
    )
    # Frames of a stretch have something in common, those across the cut its opposite.
    x[: frames // 2, :, 0] += 2
    x[frames // 2 :, :, 0] -= 2
    return x.astype(np.float32)


def batch(count=4):
    x = np.stack([random_clip(seed) for seed in range(count)])
    present = np.ones((count, FRAMES), bool)
    present[1, 4:] = present[2, 1:] = False
    return x, present


def test_against_numpy():
    x, present = batch()
    kept = CONFIG.kept(FRAMES * PATCHES)
    pruned = PRUNE(x, present, CONFIG)
    merged = 0
    for clip, there, shares, real in zip(x, present, *pruned, strict=True):
        leaders = merged_by_hand(clip.astype(np.float64), there, CONFIG)
        np.testing.assert_array_equal(merge_static(clip, there, CONFIG), leaders)
        flat = clip.reshape(-1, WIDTH).astype(np.float64)
        labels, count = clustered_by_hand(flat, leaders.ravel(), kept, 4)
        merged += (leaders >= 0).sum() - len(np.unique(leaders[leaders >= 0]))
        assert real.tolist() == [True] * count + [False] * (kept - count)
        expected = np.zeros((kept, FRAMES * PATCHES))
        for k in range(count):
            expected[k, labels == k] = 1 / (labels == k).sum()
        np.testing.assert_allclose(shares.reshape(kept, -1), expected, rtol=1e-6)
    # The cases do have static patches.
    assert merged > 20


def test_all_kept_changes_nothing():
    x, present = batch()
    whole = PruningConfig("patches")
    pruned = PRUNE(x, present, whole)
    flat = x.reshape(len(x), -1, WIDTH)
    real = np.repeat(present, PATCHES, axis=1)
    np.testing.assert_array_equal(pruned.real, real)
    np.testing.assert_array_equal(pruned.tokens(x), np.where(real[..., None], flat, 0))


def test_a_static_clip_becomes_one_frame():
    frame = np.random.default_rng(0).normal(size=(PATCHES, WIDTH)).astype(np.float32)
    x = np.broadcast_to(frame, (2, FRAMES, PATCHES, WIDTH))
    present = np.ones((2, FRAMES), bool)
    present[1, 3:] = False
    pruned = PRUNE(x, present, CONFIG)
    assert pruned.real.sum(axis=1).tolist() == [PATCHES, PATCHES]
    for tokens in pruned.tokens(x):
        np.testing.assert_allclose(tokens[:PATCHES], frame, rtol=1e-6)
    # In time, a token is spread evenly over the frames that it is the mean of.
    expected = np.where(present, 1 / present.sum(axis=1, keepdims=True), 0)
    for k in range(PATCHES):
        np.testing.assert_allclose(pruned.frames()[:, k], expected, rtol=1e-6)


def test_absent_frames_change_nothing():
    x, present = batch()
    other = np.where(present[..., None, None], x, 1e3)
    for a, b in zip(
        PRUNE(x, present, CONFIG), PRUNE(other, present, CONFIG), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert not np.any(PRUNE(x, present, CONFIG).frames()[2, :, 1:])


def test_a_clip_without_frames_has_no_token():
    x, present = batch()
    pruned = PRUNE(x, np.zeros_like(present), CONFIG)
    assert not pruned.real.any() and not pruned.shares.any()
    assert np.isfinite(pruned.tokens(x)).all()


def test_the_order_of_patches_does_not_matter():
    """Of a frame: the same tokens come out, in another order."""
    x, present = batch()
    order = np.array([2, 0, 3, 1])
    here, there = PRUNE(x, present, CONFIG), PRUNE(x[:, :, order], present, CONFIG)
    for a, b in zip(here.tokens(x), there.tokens(x[:, :, order]), strict=True):
        np.testing.assert_allclose(np.sort(a, axis=0), np.sort(b, axis=0), atol=1e-6)


def test_tokens_are_means_of_all_patches():
    """Weighted by the patches they stand for, tokens have the clip's own mean."""
    x, present = batch()
    pruned = PRUNE(x, present, CONFIG)
    sizes = (pruned.shares > 0).sum(axis=(2, 3))
    assert sizes.sum(axis=1).tolist() == (PATCHES * present.sum(axis=1)).tolist()
    total = np.einsum("bk,bkd->bd", sizes, pruned.tokens(x))
    expected = (x * present[..., None, None]).sum(axis=(1, 2))
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)


def test_gradients_go_through_means_alone():
    x, present = batch()

    def total(x):
        return jnp.sum(PRUNE(x, present, CONFIG).tokens(x))

    found = jax.grad(total)(x)
    expected = PRUNE(x, present, CONFIG).shares.sum(axis=1)
    np.testing.assert_allclose(found, np.broadcast_to(expected[..., None], x.shape))


def test_well_separated_clusters_are_found():
    rng = np.random.default_rng(3)
    centres = 10 * rng.normal(size=(3, WIDTH))
    truth = rng.permutation(np.repeat(np.arange(3), 5))
    x = (centres[truth] + 0.1 * rng.normal(size=(15, WIDTH))).astype(np.float32)
    labels, found = cluster(x, np.arange(15), 3, 4)
    assert found.all()
    assert len({*zip(labels.tolist(), truth.tolist(), strict=True)}) == 3


def test_relevant_tokens():
    """Those nearest to any word, in their order; what is not there never."""
    video = jnp.asarray([np.eye(4), np.eye(4)], jnp.float32)
    real = jnp.asarray([[True] * 4, [True, True, False, False]])
    text = jnp.asarray([np.eye(4)[[3, 1]], np.eye(4)[[2, 1]]], jnp.float32)
    words = jnp.ones((2, 2), bool)
    x, there = relevant_tokens(video, real, text, words, 2)
    np.testing.assert_array_equal(x[0], np.eye(4)[[1, 3]])
    np.testing.assert_array_equal(x[1], np.eye(4)[[0, 1]])
    assert there.all()
    x, there = relevant_tokens(video, real, text, words, 3)
    assert there.tolist() == [[True] * 3, [True, True, False]]
    # A word that is not there finds nothing.
    x, _ = relevant_tokens(video, real, text, jnp.asarray([[False, True]] * 2), 1)
    np.testing.assert_array_equal(x[:, 0], np.eye(4)[[1, 1]])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokens": "patch"}, "did you mean 'patches'"),
        ({"tokens": "patches", "kept_share": 0.0}, "kept_share=0.0"),
        ({"tokens": "patches", "kept_share": 1.5}, "kept_share=1.5"),
        ({"tokens": "patches", "relevant_share": -1.0}, "relevant_share=-1.0"),
        ({"kept_share": 0.5}, "needs pruning.tokens='patches'"),
        ({"temporal_threshold": 2.0}, "temporal_threshold=2.0 must be a cosine"),
        ({"neighbours": 0}, "neighbours=0"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(**changes)


def test_shapes_that_do_not_fit():
    x, present = batch()
    with pytest.raises(ValueError, match=r"must be \[B, T, P, D\] and \[B, T\]"):
        prune_tokens(x, present[:, :2], CONFIG)
