"""Antithetic evolution strategies over the controller's weights."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from meta_opt.types import PyTree


class Estimate(NamedTuple):
    """An estimated meta-gradient.

    Attributes:
        gradient: estimated gradient, a pytree like theta.
        centre: the objective at the unperturbed theta, [].
        spread: standard deviation of the objective over the population, [].
    """

    gradient: PyTree
    centre: jax.Array
    spread: jax.Array


def antithetic(
    objective: Callable[[PyTree], jax.Array],
    theta: PyTree,
    key: jax.Array,
    pairs: int,
    sigma: float,
) -> Estimate:
    r"""Estimates the gradient of the Gaussian-smoothed objective from mirrored pairs.

    .. math::
        \hat g = \frac{1}{2 \sigma P} \sum_{i=1}^{P}
            \big(f(\theta + \sigma \epsilon_i) - f(\theta - \sigma \epsilon_i)\big)
            \epsilon_i, \qquad \epsilon_i \sim N(0, I),

    an unbiased estimate of :math:`\nabla_\theta E[f(\theta + \sigma \epsilon)]`
    (Salimans et al., 2017).

    Args:
        objective: function from a batch of thetas (leading axis) to finite values,
            [batch].
        theta: point at which the gradient is estimated.
        key: random key of the perturbations.
        pairs: P, number of mirrored pairs.
        sigma: standard deviation of the perturbations.

    Returns:
        The estimate. The objective is called once, with 2 P + 1 thetas.
    """
    flat, restore = ravel_pytree(theta)
    noise = sigma * jax.random.normal(key, (pairs, len(flat)), flat.dtype)
    population = jnp.concatenate([flat[None] + noise, flat[None] - noise, flat[None]])
    values = objective(jax.vmap(restore)(population))
    up, down, centre = values[:pairs], values[pairs:-1], values[-1]
    gradient = (up - down) @ noise / (2.0 * pairs * sigma**2)
    return Estimate(restore(gradient), centre, jnp.std(values[:-1]))
