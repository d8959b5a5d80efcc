"""The safeguard: broken steps are skipped, a rising loss shrinks the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import meta_opt
from meta_opt.optimizers.controller import ControllerConfig, output_index
from meta_opt.optimizers.decisions import read_decisions
from meta_opt.optimizers.safeguard import init_safeguard, safeguard_step

NUM_STEPS = 1000
STEP = jax.jit(safeguard_step)


def late(state, rms, value):
    """A step in the middle of a run, where no rise is an early one."""
    return STEP(state, rms, value, jnp.int32(NUM_STEPS // 2), jnp.int32(NUM_STEPS))


def watch(values, rms=1.0, state=None, jitter=0.01):
    """Feeds losses to the safeguard; every one is taken."""
    state = init_safeguard() if state is None else state
    for i, value in enumerate(values):
        noise = jitter * (-1) ** i
        ok, state = late(state, jnp.float32(rms), jnp.float32(value + noise))
        assert ok
    return state


def run_rms(sizes, state=None):
    taken = []
    state = init_safeguard() if state is None else state
    for rms in sizes:
        ok, state = late(state, jnp.float32(rms), None)
        taken.append(bool(ok))
    return taken, state


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_is_skipped_and_counted(bad):
    ok, state = late(init_safeguard(), jnp.float32(bad), jnp.float32(1.0))
    assert not ok and int(state.skipped) == 1 and int(state.seen) == 0
    ok, state = late(state, jnp.float32(1.0), jnp.float32(bad))
    assert not ok and int(state.skipped) == 2 and int(state.losses) == 0
    ok, state = late(state, jnp.float32(1.0), jnp.float32(1.0))
    assert ok and int(state.skipped) == 2
    assert all(np.isfinite(x) for x in state)


def test_an_explosion_is_skipped_and_a_new_scale_accepted():
    _, state = run_rms([1.0] * 20)
    taken, after = run_rms([2e3, 1.0], state)
    assert taken == [False, True] and int(after.skipped) == 1
    # Below a factor of a thousand nothing is skipped.
    assert run_rms([900.0], state)[0] == [True]
    # The same new scale again and again is not an explosion.
    taken, after = run_rms([2e6] * 8, state)
    assert taken == [False] * 5 + [True] * 3
    assert float(after.log_rms) == pytest.approx(np.log(2e6), abs=0.01)


def test_the_first_three_steps_may_change_size():
    taken, _ = run_rms([1e-6, 1e6, 1e-6, 1e6])
    assert taken == [True, True, True, False]


def test_an_early_explosion_does_not_hide_the_next():
    taken, _ = run_rms([1e9, 1.0, 1.0, 1.0, 1e6, 1.0, 1.0])
    assert taken == [True, True, True, True, False, True, True]


def test_what_was_usual_before_is_no_explosion():
    """With the loss at zero, the one example that is still wrong is not skipped."""
    _, state = run_rms([1.0] * 20 + [1e-8] * 200)
    assert float(state.log_rms) < np.log(1e-7)
    assert run_rms([0.9], state)[0] == [True]
    assert run_rms([10.0], state)[0] == [False]


def test_a_vanished_gradient_shrinks_the_step():
    _, state = run_rms([1.0] * 20 + [1e-4] * 200)
    assert float(state.vanishing_scale) == 1.0
    for size in (1e-8, 0.0):
        _, gone = run_rms([1.0] * 20 + [size] * 200)
        assert float(gone.vanishing_scale) < 2e-3
    # An empty batch now and then is none; a gradient that is there again is taken.
    _, state = run_rms([1.0] * 20 + [0.0, 1.0] * 20)
    assert float(state.vanishing_scale) == 1.0
    _, state = run_rms([0.5], gone)
    assert float(state.vanishing_scale) == 1.0


def test_a_spell_of_zero_gradients_is_survived():
    """Empty batches give zero gradients; what follows is not taken for an explosion."""
    _, state = run_rms([1.0] * 20)
    taken, state = run_rms([0.0] * 10 + [1.0] * 10, state)
    assert all(taken)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
def test_a_sustained_rise_shrinks_the_step(scale):
    falling = scale * np.linspace(2.0, 1.0, 60)
    state = watch(falling, jitter=0.01 * scale)
    assert float(state.shrink) == 1.0 and float(state.fallback) == 0.0
    rise = scale * np.linspace(1.0, 2.0, 40)
    risen = watch(rise, state=state, jitter=0.01 * scale)
    assert 0.5 <= float(risen.shrink) < 0.6 and float(risen.fallback) > 0.5
    # A further rise shrinks further.
    again = watch(2.0 * rise, state=risen, jitter=0.01 * scale)
    assert float(again.shrink) < 0.65 * float(risen.shrink)
    # And it recovers when the loss does.
    calm = watch(scale * np.linspace(1.0, 0.5, 200), state=risen, jitter=0.0)
    assert float(calm.shrink) == 1.0 and float(calm.fallback) < 0.05


def test_a_jump_begins_the_watch_anew():
    """Change of the data: learning the new data needs the full step."""
    state = watch(np.linspace(2.0, 1.0, 60))
    after = watch(np.linspace(5.0, 4.0, 60), state=state)
    assert float(after.shrink) == 1.0 and float(after.fallback) == 0.0
    # From there on a rise is one again.
    risen = watch(np.linspace(4.0, 8.0, 40), state=after)
    assert float(risen.shrink) < 0.6


def test_noise_and_a_plateau_do_not_shrink_it():
    rng = np.random.default_rng(0)
    state = watch(1.0 + 0.3 * rng.normal(size=300), jitter=0.0)
    assert float(state.shrink) == 1.0 and float(state.fallback) == 0.0
    state = watch([1.0] * 100, jitter=0.0)
    assert float(state.shrink) == 1.0


def test_without_losses_it_watches_gradients_only():
    taken, state = run_rms([1.0] * 30 + [np.nan] + [1.0])
    assert taken == [True] * 30 + [False, True]
    assert int(state.losses) == 0 and float(state.shrink) == 1.0


def early(values, num_steps=NUM_STEPS, state=None):
    """States after each loss from the start of a run."""
    state = init_safeguard() if state is None else state
    states = []
    for i, value in enumerate(values):
        count, length = jnp.int32(i), jnp.int32(num_steps)
        ok, state = STEP(state, jnp.float32(1.0), jnp.float32(value), count, length)
        assert ok
        states.append(state)
    return states


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
def test_an_early_divergence_ends_the_controllers_part_at_once(scale):
    losses = scale * np.array([1.0, 0.98, 1.02, 1.0, 1.01, 3.0, 3.0])
    states = early(losses)
    assert [float(s.fallback) for s in states] == [0.0] * 5 + [1.0] * 2
    # For good: whatever the loss does afterwards.
    state = states[-1]
    for value in np.geomspace(3.0, 0.1, 200):
        _, state = late(state, jnp.float32(1.0), jnp.float32(scale * value))
    assert float(state.fallback) == 1.0 and float(state.diverged) == 1.0


def test_early_noise_and_late_rises_are_no_early_divergence():
    rng = np.random.default_rng(0)
    noisy = early(2.0 + 0.3 * rng.normal(size=100))
    assert float(noisy[-1].fallback) == 0.0
    # Up by less than a quarter, and up by much past a tenth of the run.
    small = early([1.0] * 5 + [1.2] * 20)
    assert float(small[-1].diverged) == 0.0
    late_rise = early([1.0] * 12 + [3.0] * 5, num_steps=100)
    assert float(late_rise[-1].diverged) == 0.0
    # The first ten steps are early in the shortest run.
    assert float(early([1.0] * 5 + [3.0], num_steps=20)[-1].diverged) == 1.0


# In the transformation


@functools.cache
def optimizer(safeguard=True):
    tx = meta_opt.hand_designed(1000, safeguard=safeguard)
    return tx, jax.jit(lambda g, s, p, v: tx.update(g, s, p, value=v))


def steps(count, state, params, size=1.0, value=1.0):
    _, update = optimizer()
    for i in range(count):
        # Alternating, so that momentum does not grow into another size.
        grads = jax.tree.map(lambda p, i=i: size * jnp.cos(p + i), params)
        updates, state = update(grads, state, params, jnp.float32(value))
    return updates, state


def test_skipped_steps_leave_parameters_alone():
    params = {"bias": jnp.arange(5.0), "kernel": jnp.ones((2, 3))}
    tx, _ = optimizer()
    _, state = steps(15, tx.init(params), params)
    for size, value in ((jnp.nan, 1.0), (jnp.inf, 1.0), (1.0, jnp.nan), (1e5, 1.0)):
        updates, after = steps(1, state, params, size, value)
        assert not any(np.any(x) for x in jax.tree.leaves(updates))
        assert int(after.guard.skipped) == 1
        assert int(after.count) == int(state.count) + 1
        for name in ("momentum", "second"):
            old, new = getattr(state, name), getattr(after, name)
            for a, b in zip(*map(jax.tree.leaves, (old, new)), strict=True):
                np.testing.assert_array_equal(a, b)
        updates, _ = steps(1, after, params)
        assert all(np.all(x != 0) for x in jax.tree.leaves(updates))
    # A persistent new scale is taken on from the sixth step.
    updates, after = steps(5, state, params, 1e5)
    assert not np.any(updates["bias"])
    updates, after = steps(1, after, params, 1e5)
    assert np.all(updates["bias"] != 0) and int(after.guard.skipped) == 5


def test_a_rising_loss_halves_the_updates():
    params = {"bias": jnp.arange(5.0), "kernel": jnp.ones((2, 3))}
    tx, _ = optimizer()
    _, state = steps(60, tx.init(params), params, value=1.0)
    risen = state
    for value in np.geomspace(1.005, 1.3, 50):
        _, risen = steps(1, risen, params, value=value)
    assert float(risen.guard.shrink) < 0.6
    free = risen._replace(guard=risen.guard._replace(shrink=jnp.float32(1.0)))
    small, _ = steps(1, risen, params, value=2.0)
    large, _ = steps(1, free, params, value=2.0)
    factor = float(risen.guard.shrink)
    np.testing.assert_allclose(small["bias"], factor * large["bias"], rtol=0.02)


def test_safeguard_off_lets_everything_through():
    params = {"bias": jnp.arange(5.0), "kernel": jnp.ones((2, 3))}
    tx, update = optimizer(safeguard=False)
    grads = jax.tree.map(lambda p: p * jnp.nan, params)
    updates, state = update(grads, tx.init(params), params, jnp.float32(1.0))
    assert np.isnan(updates["bias"]).all() and int(state.guard.skipped) == 0
    assert isinstance(optax.apply_updates(params, updates), dict)


def test_after_an_early_divergence_the_rule_is_the_hand_designed_one():
    config = ControllerConfig(global_hidden=2, tensor_hidden=2)
    theta = meta_opt.init_theta(jax.random.key(0), config)
    place = output_index(config, "constant>step")
    theta["output"]["kernel"] = theta["output"]["kernel"].at[place].set(1.0)
    tx = meta_opt.learned_optimizer(1000, theta=theta, config=config)
    update = jax.jit(lambda g, s, p, v: tx.update(g, s, p, value=v))
    params = {"kernel": jnp.ones((2, 3))}
    state = tx.init(params)
    steps = []
    for value in (1.0, 1.0, 1.0, 1.0, 4.0, 1.0, 0.5):
        _, state = update(params, state, params, jnp.float32(value))
        steps.append(read_decisions(state)["other/step"])
    grown = np.exp(2.5 * np.tanh(1.0 / 2.5))
    np.testing.assert_allclose(steps, [grown] * 4 + [1.0] * 3, rtol=1e-5)
