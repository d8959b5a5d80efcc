"""Estimators against gradients known by formula or by `jax.grad` of a plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_opt.meta_training.estimators.backpropagation import (
    BackpropagationConfig,
    bptt,
)
from meta_opt.meta_training.estimators.episode import Episode, make_segment
from meta_opt.meta_training.estimators.evolution_strategies import (
    EvolutionConfig,
    full_es,
    nres,
    pes,
    truncated_es,
)

ONLINE = {"truncated_es": truncated_es, "pes": pes, "nres": nres}
EVOLUTION = {"full_es": full_es, **ONLINE}
KEY = jax.random.key(0)
# Compiling is what these tests take their time for; this is a third of it.
compiled = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)

# x' = A x + drift, loss x'^3 + tilt x', x at first normal(0.3, 0.5): everything below
# is a polynomial in Gaussians, so objectives and smoothed gradients have formulas.
A, SIGMA = 0.4, 0.3
SMALL_SIGMA = 0.02
DRIFT, TILT = 0.4, -0.5
WINDOWS = 4


def cubic(sigma=1.0):
    """With theta in units of sigma, which may be traced: one program for any."""

    def segment(theta, x, key):
        x = A * x + sigma * theta["drift"]
        return x, x**3 + sigma * theta["tilt"] * x

    def init(key):
        return 0.3 + 0.5 * jax.random.normal(key)

    return Episode(init, segment, WINDOWS)


def truth(kind):
    """Objective and its gradient by (drift, tilt), as each estimator documents them."""
    total = np.zeros(3)
    for w in range(1, WINDOWS + 1):
        powers = A ** np.arange(w)
        reach = powers.sum()
        mean = 0.3 * A**w + DRIFT * reach
        variance = 0.25 * A ** (2 * w)
        if kind == "shared":  # one perturbation in all windows
            variance += SIGMA**2 * reach**2
        elif kind == "fresh":  # an independent one in each
            variance += SIGMA**2 * (powers**2).sum()
        else:  # in this window only, and only this window's drift counts
            variance, reach = variance + SIGMA**2, 1.0
        value = mean**3 + 3 * mean * variance + TILT * mean
        slope = 3 * (mean**2 + variance) + TILT
        total += np.array([value, reach * slope, mean])
    return total / WINDOWS


WORKERS = jax.random.split(jax.random.key(5), 8000)


def work(name, key, sigma, steps=WINDOWS + 2):
    """(Loss, gradient) [steps, 3], from the first estimate past an episode's end.

    Three pairs: not all windows of an episode are in an estimate.
    """
    estimator = EVOLUTION[name](cubic(sigma), EvolutionConfig(3, sigma=1.0, cap=1e4))
    theta = {"drift": DRIFT / sigma, "tilt": TILT / sigma}

    def body(state, key):
        (gradient, loss, _), state = estimator.estimate(theta, state, key)
        slopes = jnp.stack([gradient["drift"], gradient["tilt"]]) / sigma
        return state, jnp.concatenate([loss[None], slopes])

    keys = jax.random.split(key, steps + 1)
    return jax.lax.scan(body, estimator.init(theta, keys[0]), keys[1:])[1]


@functools.cache
def mapped(name):
    return compiled(jax.vmap(functools.partial(work, name), (0, None)))


@functools.cache
def samples(name, sigma=SIGMA):
    """The same of independent workers, [workers, steps, 3]."""
    return np.asarray(mapped(name)(WORKERS, sigma), np.float64)


def z_scores(name, kind, steps=slice(None)):
    """Of (loss, gradient by drift, by tilt); workers are independent."""
    means = samples(name)[:, steps].mean(axis=1)
    error = means.std(axis=0) / np.sqrt(len(means))
    return (means.mean(axis=0) - truth(kind)) / error


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("full_es", "shared"),
        ("nres", "shared"),
        ("pes", "fresh"),
        ("truncated_es", "window"),
    ],
)
def test_mean_estimate_is_the_documented_gradient(name, kind):
    # Not only in the long run: phases are uniform and runs on their way from the start.
    for steps in (slice(None), slice(0, 1)):
        z = z_scores(name, kind, steps)
        print(name, steps, "z", z)
        assert np.all(np.abs(z) < 3.5)


def test_smoothings_are_told_apart_and_truncated_es_is_biased():
    apart = {
        (name, kind): z_scores(name, kind)[1]
        for name, kind in [
            ("nres", "fresh"),
            ("full_es", "fresh"),
            ("pes", "shared"),
            ("truncated_es", "shared"),
            ("truncated_es", "fresh"),
        ]
    }
    print("z", apart)
    assert min(abs(z) for z in apart.values()) > 8
    assert abs(apart["truncated_es", "fresh"]) > 50


def test_noise_reuse_has_the_smaller_variance_where_losses_are_near_linear():
    # The assumption of Li et al. At SIGMA the cube smoothed by noise that adds up over
    # windows is another, steeper function, and it is the other way round.
    reused, accumulated = (
        samples(name, SMALL_SIGMA)[..., 1:].reshape(-1, 2).var(axis=0)
        for name in ("nres", "pes")
    )
    print("variance", "nres", reused, "pes", accumulated)
    assert np.all(reused < 0.9 * accumulated)


@pytest.mark.parametrize("name", ["full_es", "nres"])
def test_initial_state_and_batches_of_a_pair_are_the_same(name):
    def segment(theta, x, key):
        return x, 3.0 + x + jax.random.normal(key) + 0.0 * theta

    episode = Episode(jax.random.normal, segment, 3)
    estimator = EVOLUTION[name](episode, EvolutionConfig(pairs=4, cap=1e4))
    _, found, _ = run(estimator, jnp.float32(0), steps=4)
    np.testing.assert_array_equal(found.gradient, 0)
    assert np.all(found.spread > 0.1)


# Inner training of w by gradient descent with learned log step and momentum.
STEPS, TRUNCATION = 8, 2
META = {"log_step": jnp.float32(-1.5), "momentum": jnp.array([0.5, 0.2])}


def inner_step(theta, state, key):
    w, m = state
    loss, slope = jax.value_and_grad(
        lambda w: jnp.sum(jnp.square(jnp.sin(w) - 0.5)) + 0.1 * jnp.sum(w**4)
    )(w)
    m = jax.nn.sigmoid(theta["momentum"]) * m + slope
    return (w - jnp.exp(theta["log_step"]) * m, m), loss


def descent(segments, truncation_length, checkpoint_every=None, weights=None):
    return Episode(
        init=lambda key: (jnp.array([1.3, -0.7]), jnp.zeros(2)),
        segment=make_segment(inner_step, truncation_length, checkpoint_every),
        segments=segments,
        weights=weights,
    )


def plain_loss(theta, weights=(1.0,) * 4, cut=False):
    """The objective by a Python loop; ``cut`` holds states constant at windows."""
    state, total = (jnp.array([1.3, -0.7]), jnp.zeros(2)), 0.0
    for t in range(STEPS):
        if cut and t % TRUNCATION == 0:
            state = jax.lax.stop_gradient(state)
        state, loss = inner_step(theta, state, None)
        total += loss * weights[t // TRUNCATION] / sum(weights) / TRUNCATION
    return total


@functools.cache
def plain(weights=(1.0,) * 4, cut=False):
    """Value and gradient of `plain_loss`."""
    loss = functools.partial(plain_loss, weights=weights, cut=cut)
    return compiled(jax.value_and_grad(loss))(META)


def close(a, b, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, 1e-7), a, b)


def run(estimator, theta, steps=1, key=KEY):
    """Estimates one after another, stacked; their mean gradient; states after each."""

    def body(state, key):
        estimate, state = estimator.estimate(theta, state, key)
        return state, (estimate, state)

    @compiled
    def work(keys):
        return jax.lax.scan(body, estimator.init(theta, keys[0]), keys[1:])[1]

    found, states = work(jax.random.split(key, steps + 1))
    return jax.tree.map(lambda g: g.mean(axis=0), found.gradient), found, states


@pytest.mark.parametrize(
    ("segments", "remat", "checkpoint_every"),
    [(1, False, None), (1, False, 4), (4, True, None)],
)
def test_bptt_of_whole_episodes_is_grad_of_the_plain_loop(
    segments, remat, checkpoint_every
):
    episode = descent(segments, STEPS // segments, checkpoint_every)
    config = BackpropagationConfig(2, segments, remat, max_norm=np.inf)
    mean, found, _ = run(bptt(episode, config), META)
    loss, gradient = plain()
    close(mean, gradient)
    close(found.loss[0], loss)
    assert found.spread < 1e-6


def test_truncated_bptt_is_the_plain_loop_cut_at_windows_and_so_biased():
    weights = (0.0, 1.0, 3.0, 2.0)
    episode = descent(4, TRUNCATION, weights=weights)
    # The episode has no randomness: four estimates in a row see each window once.
    config = BackpropagationConfig(particles=3, max_norm=np.inf)
    mean, found, _ = run(bptt(episode, config), META, steps=4)
    (loss, full), (_, cut) = plain(weights), plain(weights, cut=True)
    close(mean, cut)
    close(found.loss.mean(), loss)
    assert abs(cut["log_step"] - full["log_step"]) > 0.2 * abs(full["log_step"])


def test_remat_is_in_the_program():
    def checkpoints(remat, every):
        config = BackpropagationConfig(2, 4, remat)
        estimator = bptt(descent(4, TRUNCATION, every), config)
        state = jax.eval_shape(estimator.init, META, KEY)
        return str(jax.make_jaxpr(estimator.estimate)(META, state, KEY)).count("remat")

    assert checkpoints(False, None) == 0
    assert checkpoints(True, None) > 0 and checkpoints(False, 1) > 0


def test_bptt_clips_each_particle_and_drops_what_is_not_finite():
    sizes = jnp.array([1e30, 3.0, jnp.nan, 0.25])

    def segment(theta, size, key):
        # The loss is 1, its gradient `size`: not a number from the root of 0.
        root = jnp.sqrt(jnp.where(jnp.isnan(size), theta - theta, 1.0))
        slope = jnp.where(jnp.isnan(size), root, jnp.nan_to_num(size) * theta)
        return size, 1.0 + (slope - jax.lax.stop_gradient(slope))

    @compiled
    @functools.partial(jax.vmap, in_axes=(0, None))
    def gradient(sizes, particles):
        episode = Episode(
            lambda key: sizes[jax.random.randint(key, (), 0, len(sizes))], segment, 1
        )
        config = BackpropagationConfig(len(particles), max_norm=0.5)
        estimator = bptt(episode, config)
        theta = jnp.float32(1.0)
        return estimator.estimate(theta, estimator.init(theta, KEY), KEY)[0]

    estimate = gradient(sizes[:, None], np.zeros(1))
    np.testing.assert_allclose(estimate.gradient, [0.5, 0.5, 0.0, 0.25], rtol=1e-6)
    np.testing.assert_array_equal(estimate.loss, 1.0)
    # The mean is over all particles, those that count as 0 too.
    mean = gradient(sizes[None], np.zeros(4000)).gradient
    np.testing.assert_allclose(mean, 1.25 / 4, atol=0.02)


def counting(loss=lambda theta, count: count, weights=None):
    """Five windows; the inner state is the number of them run."""

    def segment(theta, count, key):
        return count + 1, loss(theta, count)

    return Episode(lambda key: jnp.float32(0), segment, 5, weights)


def online(name, episode, particles, cap=50.0):
    if name == "bptt":
        return bptt(episode, BackpropagationConfig(particles, cap=cap))
    return ONLINE[name](episode, EvolutionConfig(particles, cap=cap))


@pytest.mark.parametrize("name", ["nres", "bptt"])
def test_particles_are_out_of_step_and_begin_anew_at_the_end(name):
    episode = counting(weights=(1.0, 2.0, 0.0, 3.0, 2.0))
    theta = jnp.float32(1.0)
    _, found, states = run(online(name, episode, 11), theta, steps=12)
    windows = np.asarray(states.window)
    for now in windows:
        assert set(np.bincount(now, minlength=5)) == {2, 3}
    np.testing.assert_array_equal(windows[1:], (windows[:-1] + 1) % 5)
    # Windows run since the episode began; a finished run is replaced when next run.
    ran = np.where(windows == 0, 5, windows)
    np.testing.assert_array_equal(
        states.inner, np.broadcast_to(ran[..., None], states.inner.shape)
    )
    assert np.all(states.alive)
    # Any five estimates in a row see each window of each particle once.
    objective = (1 * 0 + 2 * 1 + 0 * 2 + 3 * 3 + 2 * 4) / 8
    np.testing.assert_allclose(found.loss[3:8].mean(), objective, rtol=1e-6)
    # Which particle is where depends on the key.
    init = online(name, episode, 1).init
    starts = compiled(jax.vmap(init, (None, 0)))(theta, jax.random.split(KEY, 40))
    assert set(np.ravel(starts.window)) == set(range(5))


def test_pes_accumulates_over_one_episode_only():
    estimator = pes(counting(), EvolutionConfig(pairs=500, sigma=0.1))
    _, _, states = run(estimator, jnp.zeros(4), steps=12)
    squares = np.square(states.noise).mean(axis=-1)
    for w in range(5):  # after the last window, w is 0
        expected = 0.1**2 * (w or 5)
        mean = squares[np.asarray(states.window) == w].mean()
        np.testing.assert_allclose(mean, expected, rtol=0.1)


@pytest.mark.parametrize("name", ["full_es", "nres"])
def test_divergence_scores_the_cap_until_the_episode_ends(name):
    # One theta of each pair is above 0; its third window breaks, and it stays broken:
    # the same as the cap in that window and the two left.
    def trial(bad, first_only):
        def loss(theta, count):
            broken = (theta > 0) & ((count == 2) | ((count > 2) & ~first_only))
            return jnp.where(broken, bad, count)

        config = EvolutionConfig(pairs=6, sigma=1.0, cap=7.0)
        estimator = EVOLUTION[name](counting(loss=loss), config)
        return run(estimator, jnp.float32(0.0), steps=7)[1:]

    bad = jnp.array([7.0, jnp.nan, jnp.inf, -jnp.inf])
    found, states = jax.vmap(trial)(bad, jnp.array([False, True, True, True]))
    for x in found:
        np.testing.assert_allclose(x, np.broadcast_to(x[:1], x.shape), rtol=1e-5)
    assert np.any(found.gradient > 0) and np.all(found.gradient >= 0)
    if name == "nres":
        # The other one of the pair keeps its episode and its place.
        dead = ~np.asarray(states.alive)
        assert not dead[0].any() and dead[1:].any() and not dead.all(axis=-1).any()
        windows = np.asarray(states.window)
        np.testing.assert_array_equal(windows[:, 1:], (windows[:, :-1] + 1) % 5)


@pytest.mark.parametrize("name", ["truncated_es", "bptt"])
def test_what_is_wholly_dead_begins_anew(name):
    def segment(theta, x, key):
        x = jnp.where(x >= 2, jnp.nan, x + 1)
        return x, jnp.sum(x) * theta

    episode = Episode(lambda key: jnp.zeros(3), segment, 6)
    _, found, states = run(online(name, episode, 10), jnp.float32(1.0), steps=9)
    assert set(np.ravel(states.window)) == {0, 1, 2}
    dead = ~np.asarray(states.alive)
    assert np.all(np.asarray(states.window)[dead.any(axis=-1)] == 0)
    assert np.all(np.isfinite(np.asarray(states.inner)[~dead]))
    assert np.all(np.isfinite(found.gradient)) and np.all(np.abs(found.loss) <= 50)
    assert np.all(found.gradient != 0)  # some have begun anew at every time


def test_losses_are_clipped_at_the_cap_and_an_overflow_is_gradient_0():
    episode = counting(loss=lambda theta, count: 1e6 * (count - 2))
    config = EvolutionConfig(pairs=2, cap=3.0)
    _, found, _ = run(full_es(episode, config), jnp.float32(0))
    np.testing.assert_allclose(found.loss, (-3 - 3 + 0 + 3 + 3) / 5, atol=1e-6)
    episode = counting(loss=lambda theta, count: jnp.sign(theta) * 3e38)
    config = EvolutionConfig(pairs=2, sigma=1e-3, cap=3e38)
    gradient, _, _ = run(full_es(episode, config), jnp.float32(0))
    assert gradient == 0


def test_same_key_same_estimates_alone_and_under_vmap():
    alone = compiled(functools.partial(work, "nres"))
    first, other, again = (alone(WORKERS[i], SIGMA) for i in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert np.all(first[:, 0] != other[:, 0]) and alone._cache_size() == 1
    np.testing.assert_allclose(samples("nres")[:2], [first, other], rtol=1e-4)


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="pairs=0"):
        EvolutionConfig(pairs=0)
    with pytest.raises(ValueError, match="sigma=0"):
        EvolutionConfig(sigma=0)
    with pytest.raises(ValueError, match="cap=nan"):
        BackpropagationConfig(cap=np.nan)
    with pytest.raises(ValueError, match="windows=3 does not divide segments=4"):
        bptt(cubic(), BackpropagationConfig(windows=3))
    with pytest.raises(ValueError, match="3 weights for 4 segments"):
        Episode(lambda key: 0, lambda theta, state, key: (0, 0), 4, (1, 1, 1))
    with pytest.raises(ValueError, match="not all 0"):
        Episode(lambda key: 0, lambda theta, state, key: (0, 0), 2, (0, 0))
    with pytest.raises(ValueError, match="checkpoint_every=5"):
        make_segment(inner_step, 12, 5)
