r"""Antithetic evolution strategies on whole episodes and on single windows.

All of them average, over P mirrored pairs with :math:`\epsilon \sim N(0, \sigma^2 I)`,

.. math:: \hat g = S p_w \, \frac{L_w^+ - L_w^-}{2 \sigma^2} \, \nu,

and differ in how a window is perturbed, in the inner state it starts from, and in the
noise :math:`\nu` that its loss is attributed to. The two runs of a pair have the same
initial state and batches. ``vmap`` maps over the pairs.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from meta_opt.meta_training.estimators.episode import (
    Episode,
    Estimate,
    Estimator,
    Runs,
    bounded,
    finite_or_zero,
    fresh_runs,
    next_window,
    put_out_of_step,
    renew,
)
from meta_opt.parallel.particles import Vmap
from meta_opt.types import PyTree

_Perturb = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(episode begins [P, 1], noise so far, new draw) to (perturbation of the window,
noise that its losses are attributed to)."""


@dataclasses.dataclass(frozen=True)
class EvolutionConfig:
    """Settings of evolution strategies.

    Attributes:
        pairs: P, mirrored pairs of thetas.
        sigma: standard deviation of the perturbations.
        cap: bound on the absolute loss of a window; also the loss of a diverged window.
    """

    pairs: int = 8
    sigma: float = 0.03
    cap: float = 10.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.pairs < 1:
            raise ValueError(f"pairs={self.pairs} must be at least 1")
        if not (0 < self.sigma < np.inf and 0 < self.cap < np.inf):
            raise ValueError(
                f"sigma={self.sigma} and cap={self.cap} must be positive and finite"
            )


def full_es(
    episode: Episode, config: EvolutionConfig, vmap: Vmap = jax.vmap
) -> Estimator:
    r"""Evolution strategies on whole episodes, with one perturbation per episode.

    .. math:: E[\hat g] = \nabla_\theta E_\epsilon[F(\theta + \epsilon)]

    (Salimans et al. 2017, arXiv:1703.03864). Runs 2 P S windows per estimate, and keeps
    no state between estimates: it is ``()``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def segment(theta, x, key):
        ...     return 0.5 * x + theta, jnp.square(0.5 * x + theta - 1.0)
        >>> episode = Episode(lambda key: jnp.float32(0), segment, segments=4)
        >>> estimator = full_es(episode, EvolutionConfig(pairs=64, sigma=0.1))
        >>> theta, key = jnp.float32(0), jax.random.key(0)
        >>> state = estimator.init(theta, key)
        >>> estimate, state = jax.jit(estimator.estimate)(theta, state, key)
        >>> bool(estimate.gradient < 0)  # more theta brings x nearer to 1
        True
    """
    window = bounded(episode.segment, config.cap)
    shares = jnp.asarray(episode.shares)

    def run(theta: PyTree, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 1 + episode.segments)

        def body(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
            inner, alive, loss = window(theta, *carry, key)
            return (inner, alive), loss

        carry = (episode.init(keys[0]), jnp.bool_(True))
        _, losses = jax.lax.scan(body, carry, keys[1:])
        return jnp.sum(shares * losses)

    def init(theta: PyTree, key: jax.Array) -> PyTree:
        del theta, key
        return ()

    def estimate(
        theta: PyTree, state: PyTree, key: jax.Array
    ) -> tuple[Estimate, PyTree]:
        keys = jax.random.split(key, 1 + config.pairs)
        noise = _draw(config, theta, keys[0])
        thetas = _move(theta, noise, np.array([1.0, -1.0]))
        values = vmap(jax.vmap(run, (0, None)))(thetas, keys[1:])
        return _estimate(config, theta, values, noise), state

    return Estimator(init, estimate)


def truncated_es(
    episode: Episode, config: EvolutionConfig, vmap: Vmap = jax.vmap
) -> Estimator:
    r"""Truncated evolution strategies: both runs of a pair start unperturbed.

    .. math::
        E[\hat g] = \sum_w p_w \nabla_\theta E_\epsilon[L_w(s_w, \theta + \epsilon)]

    with the inner state :math:`s_w` held constant: **biased**, since the effect of
    theta on earlier windows is ignored. Runs 3 P windows per estimate: plus, minus, and
    unperturbed, whose state the next window starts from.
    """

    def perturb(
        begins: jax.Array, noise: jax.Array, draw: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del begins, noise
        return draw, draw

    return _online(episode, config, perturb, vmap, unperturbed_state=True)


def pes(episode: Episode, config: EvolutionConfig, vmap: Vmap = jax.vmap) -> Estimator:
    r"""Persistent evolution strategies: accumulates a new perturbation per window.

    .. math::
        E[\hat g] = \nabla_\theta E\Big[\sum_w p_w
            L_w(\theta + \epsilon_1, \dots, \theta + \epsilon_w)\Big],
        \qquad \nu = \sum_{v \le w} \epsilon_v

    (Vicol et al. 2021, arXiv:2112.13835). Unbiased; the variance grows with S. Each run
    of a pair has its own inner state. Runs 2 P windows per estimate.
    """

    def perturb(
        begins: jax.Array, noise: jax.Array, draw: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return draw, jnp.where(begins, 0.0, noise) + draw

    return _online(episode, config, perturb, vmap)


def nres(episode: Episode, config: EvolutionConfig, vmap: Vmap = jax.vmap) -> Estimator:
    r"""Noise-reuse evolution strategies: one perturbation per episode.

    .. math:: E[\hat g] = \nabla_\theta E_\epsilon[F(\theta + \epsilon)],
        \qquad \nu = \epsilon

    (Li et al. 2023, arXiv:2304.12180). Unbiased for the same smoothing as `full_es`;
    at most the variance of `pes` under that paper's assumptions. Each run of a pair has
    its own inner state. Runs 2 P windows per estimate.
    """

    def perturb(
        begins: jax.Array, noise: jax.Array, draw: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        noise = jnp.where(begins, draw, noise)
        return noise, noise

    return _online(episode, config, perturb, vmap)


def _online(
    episode: Episode,
    config: EvolutionConfig,
    perturb: _Perturb,
    vmap: Vmap,
    unperturbed_state: bool = False,
) -> Estimator:
    """Uses one window per estimate; each pair is at its own window and episode."""
    window = bounded(episode.segment, config.cap)
    scale = jnp.asarray(episode.segments * episode.shares)
    if unperturbed_state:
        # The next window starts from the state of the third, unperturbed run.
        signs, starts, kept = np.array([1.0, -1.0, 0.0]), [0, 0, 0], [2]
    else:
        signs, starts, kept = np.array([1.0, -1.0]), [0, 1], [0, 1]

    def advance(theta: PyTree, runs: Runs, key: jax.Array) -> tuple[Runs, jax.Array]:
        """Runs the next window of every pair; returns scaled losses [P, 2] as well."""
        pairs = config.pairs
        keys = jax.random.split(key, 1 + 2 * pairs)
        runs = renew(episode, runs, keys[1 : 1 + pairs])
        draw = _draw(config, theta, keys[0])
        move, noise = perturb((runs.window == 0)[:, None], runs.noise, draw)
        inner, alive, losses = vmap(jax.vmap(window, (0, 0, 0, None)))(
            _move(theta, move, signs),
            _members(runs.inner, starts),
            _members(runs.alive, starts),
            keys[1 + pairs :],
        )
        alive = _members(alive, kept)
        following = next_window(runs.window, 1, episode.segments, alive)
        values = scale[runs.window][:, None] * losses[:, :2]
        return Runs(_members(inner, kept), alive, following, noise), values

    def init(theta: PyTree, key: jax.Array) -> Runs:
        fresh_key, phase_key = jax.random.split(key)
        size = len(ravel_pytree(theta)[0])
        runs = fresh_runs(episode, fresh_key, config.pairs, len(kept), size)
        return put_out_of_step(
            lambda runs, key: advance(theta, runs, key)[0],
            runs,
            episode.segments,
            phase_key,
        )

    def estimate(theta: PyTree, state: Runs, key: jax.Array) -> tuple[Estimate, Runs]:
        state, values = advance(theta, state, key)
        return _estimate(config, theta, values, state.noise), state

    return Estimator(init, estimate)


def _draw(config: EvolutionConfig, theta: PyTree, key: jax.Array) -> jax.Array:
    """Draws perturbations, float32 [P, size of theta]."""
    size = len(ravel_pytree(theta)[0])
    return config.sigma * jax.random.normal(key, (config.pairs, size))


def _move(theta: PyTree, move: jax.Array, signs: np.ndarray) -> PyTree:
    """Returns theta + sign * move for each sign; leaves [P, signs, ...]."""
    flat, restore = ravel_pytree(theta)
    steps = jnp.asarray(signs, move.dtype)[None, :, None] * move[:, None]
    thetas = flat[None, None] + steps
    return jax.vmap(jax.vmap(restore))(thetas)


def _members(tree: PyTree, picks: list[int]) -> PyTree:
    """Selects members ``picks`` of every group: [P, C, ...] to [P, picks, ...]."""
    return jax.tree.map(lambda x: x[:, np.array(picks)], tree)


def _estimate(
    config: EvolutionConfig, theta: PyTree, values: jax.Array, noise: jax.Array
) -> Estimate:
    """Estimates from the values [P, 2] at plus and minus, and their perturbations."""
    _, restore = ravel_pytree(theta)
    slopes = (values[:, 0] - values[:, 1]) / (2.0 * config.sigma**2)
    gradient = restore(slopes @ noise / config.pairs)
    return Estimate(finite_or_zero(gradient), jnp.mean(values), jnp.std(values))
