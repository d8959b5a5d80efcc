"""Functions fitted without noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import function_fits


def test_losses_are_those_of_their_equations():
    """Against sums over the points; a linear network has no second derivative."""
    slope, offset = 0.5, 0.25
    params = [{"w": jnp.full((1, 1), slope), "b": jnp.full(1, offset)}]
    x = np.linspace(-1, 1, 64)
    target = np.sin(np.pi * x)
    losses = function_fits.losses()
    fit = np.mean((slope * x + offset - target) ** 2)
    np.testing.assert_allclose(losses["fit"](params), fit, rtol=1e-5)
    edges = (offset - slope) ** 2 + (offset + slope) ** 2
    poisson = np.mean((np.pi**2 * target) ** 2) + 100 * edges
    np.testing.assert_allclose(losses["poisson"](params), poisson, rtol=1e-5)


def test_the_final_loss_is_that_after_all_steps():
    loss = function_fits.losses()["fit"]
    found = [function_fits.final_loss(optax.adam(0.01), loss, 0, n) for n in (1, 200)]
    assert found[1] < 0.02 * found[0]
    start = loss(function_fits.init(jax.random.key(0)))
    still = function_fits.final_loss(optax.sgd(0.0), loss, 0, 5)
    assert still == pytest.approx(float(start), rel=1e-6)


def test_a_weight_that_is_none_is_named():
    with pytest.raises(ValueError, match="'loss_lowest>step' names no feature"):
        function_fits.contenders(10, ["loss_lowest>step"], [])
