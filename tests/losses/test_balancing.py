"""Balancing baselines: oracles by hand and in numpy, and invariants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meta_opt.losses.balancing import (
    gradnorm_loss,
    gradnorm_weights,
    modality_strengths,
    ogm_factors,
    ogm_ge,
    pcgrad,
    uncertainty_weighting,
)


def test_uncertainty_finds_the_losses_own_scale():
    """At the optimum of s the weight of a loss is one over the loss."""
    losses, s = np.array([0.5, 4.0], np.float32), np.zeros(2, np.float32)
    slope = jax.jit(jax.grad(uncertainty_weighting, argnums=1))
    for _ in range(500):
        s = s - 0.1 * np.asarray(slope(losses, s))
    np.testing.assert_allclose(np.exp(-s), 1 / losses, rtol=1e-3)


def test_gradnorm_raises_the_weight_of_what_is_slow():
    weights, norms = jnp.ones(2), jnp.ones(2)
    first, losses = jnp.array([2.0, 2.0]), jnp.array([1.0, 2.0])
    grad = jax.grad(gradnorm_loss)(weights, norms, losses, first)
    assert grad[0] > 0 > grad[1]
    # By hand: rates 2/3 and 4/3, targets their 1.5th powers, the mean norm is one.
    expected = abs(1 - (2 / 3) ** 1.5) + abs(1 - (4 / 3) ** 1.5)
    found = gradnorm_loss(weights, norms, losses, first)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    # Alone in its dominance, a loss whose gradient is larger loses weight.
    grad = jax.grad(gradnorm_loss)(weights, jnp.array([1.0, 3.0]), first, first)
    assert grad[0] < 0 < grad[1]
    assert float(jnp.sum(gradnorm_weights(jnp.array([-1.0, 0.5, 2.0])))) == 3.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_gradnorm_leaves_out_an_absent_loss(bad):
    """As if it did not exist: it neither pulls nor counts in the means."""
    weights, norms = jnp.array([0.5, 2.0, 1.5]), jnp.array([1.0, bad, 3.0])
    losses, first = jnp.array([1.0, bad, 4.0]), jnp.array([2.0, bad, 4.0])
    there = np.array([True, False, True])
    value, grad = jax.value_and_grad(gradnorm_loss)(
        weights, norms, losses, first, present=there
    )
    # By hand: rates 2/3 and 4/3, mean norm (0.5 + 4.5) / 2.
    expected = abs(0.5 - 2.5 * (2 / 3) ** 1.5) + abs(4.5 - 2.5 * (4 / 3) ** 1.5)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(grad, [-1.0, 0.0, 3.0], rtol=1e-6)
    nothing = jnp.zeros(3, bool)
    grad = jax.grad(gradnorm_loss)(weights, norms, losses, first, present=nothing)
    np.testing.assert_array_equal(grad, 0.0)


def numpy_pcgrad(grads, orders):
    out = []
    for i, order in enumerate(orders):
        own = grads[i].copy()
        for j in order:
            product = own @ grads[j]
            if j != i and product < 0:
                own = own - product / (grads[j] @ grads[j]) * grads[j]
        out.append(own)
    return np.mean(out, axis=0)


@functools.partial(jax.jit, static_argnums=1)
def permutations(key, count):
    return [jax.random.permutation(k, count) for k in jax.random.split(key, count)]


PCGRAD = jax.jit(pcgrad)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_pcgrad_is_the_papers(seed, count):
    grads = np.random.default_rng(seed).normal(size=(count, 5))
    key = jax.random.key(seed)
    orders = [np.asarray(order) for order in permutations(key, count)]
    single = grads.astype(np.float32)
    found, weights = PCGRAD({"a": single[:, :2], "b": single[:, 2:]}, key)
    joined = np.concatenate([found["a"], found["b"]])
    np.testing.assert_allclose(joined, weights @ grads, atol=1e-5)
    np.testing.assert_allclose(joined, numpy_pcgrad(grads, orders), atol=1e-4)


def test_pcgrad_leaves_what_agrees():
    grads = jnp.array([[1.0, 0.2], [0.5, 1.0], [0.0, 0.0]])
    found, weights = PCGRAD(grads, jax.random.key(0))
    np.testing.assert_allclose(found, np.mean(grads, axis=0), rtol=1e-6)
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)


def test_the_stronger_modality_is_weakened():
    labels = jnp.array([0, 1])
    sure = 5.0 * jax.nn.one_hot(labels, 3)
    strengths = modality_strengths([sure, jnp.zeros((2, 3))], labels)
    np.testing.assert_allclose(strengths[1], 2 / 3, rtol=1e-6)
    factors = ogm_factors(strengths, alpha=0.3)
    ratio = float(strengths[0] / strengths[1])
    np.testing.assert_allclose(factors, [1 - np.tanh(0.3 * ratio), 1.0], rtol=1e-5)
    np.testing.assert_array_equal(ogm_factors(jnp.ones(3)), 1.0)
    with pytest.raises(ValueError, match="one modality"):
        ogm_factors(jnp.ones(1))


def test_factors_by_hand():
    """Sums of the right classes' probabilities 1.5 and 1.0, the ratio is 1.5."""
    labels = jnp.array([0, 1])
    first = jnp.log(jnp.array([[0.8, 0.2], [0.3, 0.7]]))
    second = jnp.log(jnp.array([[0.6, 0.4], [0.6, 0.4]]))
    strengths = modality_strengths([first, second], labels)
    np.testing.assert_allclose(strengths, [1.5, 1.0], rtol=1e-6)
    # tanh(0.75) = 0.635149
    found = ogm_factors(strengths, alpha=0.5)
    np.testing.assert_allclose(found, [0.364851, 1.0], rtol=1e-5)
    absent = [jnp.array([True, False]), jnp.array([True, True])]
    found = modality_strengths([first, second], labels, absent)
    np.testing.assert_allclose(found, [0.8, 1.0], rtol=1e-6)


def numpy_factors(strengths, alpha, present):
    found = np.ones(len(strengths))
    for m, strength in enumerate(strengths):
        others = [s for n, s in enumerate(strengths) if n != m and present[n]]
        if present[m] and others:
            ratio = strength / np.mean(others)
            found[m] = 1 - np.tanh(alpha * ratio) if ratio > 1 else 1.0
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.floats(0.1, 0.8))
def test_factors_are_those_of_numpy(seed, count, alpha):
    rng = np.random.default_rng(seed)
    strengths = rng.uniform(0.01, 1.0, count).astype(np.float32)
    present = rng.random(count) < 0.7
    found = ogm_factors(jnp.asarray(strengths), alpha, jnp.asarray(present))
    expected = numpy_factors(strengths, alpha, present)
    # 1 - tanh of a large ratio: the error is that of 1 in float32.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_balanced_modalities_are_left_alone(count):
    """The factor jumps at a ratio of 1, where rounding must not decide."""
    for strength in (0.1, 1 / 3, 0.7, 29.3):
        factors = ogm_factors(jnp.full(count, strength), alpha=0.8)
        np.testing.assert_array_equal(factors, 1.0)
    np.testing.assert_array_equal(ogm_factors(jnp.array([jnp.nan, 1.0])), 1.0)


def test_the_noise_has_the_gradients_size():
    grads = {"kernel": jnp.linspace(-1, 1, 4000), "bias": jnp.zeros(3)}
    found = ogm_ge(grads, jnp.float32(0.5), jax.random.key(0))
    noise = found["kernel"] - 0.5 * grads["kernel"]
    assert float(jnp.std(noise)) == pytest.approx(
        float(jnp.std(grads["kernel"])), rel=0.05
    )
    np.testing.assert_array_equal(found["bias"], 0)
    same = ogm_ge(grads, jnp.float32(1.0), jax.random.key(0))
    np.testing.assert_array_equal(same["kernel"], grads["kernel"])
    half = jax.tree.map(lambda g: g.astype(jnp.bfloat16), grads)
    plain = ogm_ge(half, jnp.float32(0.5), jax.random.key(0), noise=False)
    assert plain["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(plain["kernel"], 0.5 * half["kernel"])
