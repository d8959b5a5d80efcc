"""Back-propagation through time, truncated or through whole episodes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

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


@dataclasses.dataclass(frozen=True)
class BackpropagationConfig:
    """Settings of `bptt`.

    Attributes:
        particles: P, number of parallel inner runs, each with its own initial state,
            batches and position in its episode.
        windows: number of windows to back-propagate through; the episode's number of
            segments for the whole episode.
        remat: whether to store only the states between windows for the backward pass
            and recompute the steps inside windows. For finer checkpoints see
            ``make_segment``.
        max_norm: norm that each particle's gradient is clipped to.
        cap: bound on the absolute loss of a window; also the loss of a diverged window.
    """

    particles: int = 8
    windows: int = 1
    remat: bool = True
    max_norm: float = 1.0
    cap: float = 10.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        if min(self.particles, self.windows) < 1:
            raise ValueError(
                f"particles={self.particles} and windows={self.windows} must be at "
                "least 1"
            )
        if not (self.max_norm > 0 and 0 < self.cap < np.inf):
            raise ValueError(
                f"max_norm={self.max_norm} and cap={self.cap} must be positive, and "
                "cap finite"
            )


def bptt(
    episode: Episode, config: BackpropagationConfig, vmap: Vmap = jax.vmap
) -> Estimator:
    r"""Back-propagates through ``windows`` windows; the state before is a constant.

    .. math::
        E[\hat g] = \sum_{b} E\Big[\nabla_\theta \sum_{w \in b} p_w
            L_w(s_b, \theta)\Big]

    over blocks :math:`b` of ``windows`` windows with inner state :math:`s_b` at their
    start, if nothing is clipped. With all windows in one block it is
    :math:`\nabla_\theta F` exactly; with fewer it is biased (Wu et al. 2018,
    arXiv:1803.02021). A non-finite gradient of a particle counts as 0 in the mean, and
    a loss beyond the cap has gradient 0. ``vmap`` maps over the particles.

    Raises:
        ValueError: if the episode's segments are not a multiple of ``windows``.
    """
    blocks, rest = divmod(episode.segments, config.windows)
    if rest:
        raise ValueError(
            f"windows={config.windows} does not divide segments={episode.segments}"
        )
    window = bounded(episode.segment, config.cap)
    if config.remat:
        window = jax.checkpoint(window, prevent_cse=False)
    scale = jnp.asarray(blocks * episode.shares)

    def run(
        theta: PyTree, inner: PyTree, alive: jax.Array, start: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, jax.Array]]:
        """Runs a particle's next block; returns its scaled loss and the next state."""

        def body(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
            inner, alive, loss = window(theta, *carry, key)
            return (inner, alive), loss

        keys = jax.random.split(key, config.windows)
        carry, losses = jax.lax.scan(body, (inner, alive), keys)
        return jnp.sum(scale[start + jnp.arange(config.windows)] * losses), carry

    def clipped(
        theta: PyTree, inner: PyTree, alive: jax.Array, start: jax.Array, key: jax.Array
    ) -> tuple[tuple[jax.Array, tuple], PyTree]:
        result, gradient = jax.value_and_grad(run, has_aux=True)(
            theta, inner, alive, start, key
        )
        return result, _clip_norm(finite_or_zero(gradient), config.max_norm)

    def begin(runs: Runs, key: jax.Array) -> tuple[Runs, tuple]:
        """Starts new episodes where due; returns the arguments of `run` as well."""
        keys = jax.random.split(key, (2, config.particles))
        runs = renew(episode, runs, keys[0])
        inner = jax.tree.map(lambda x: x[:, 0], runs.inner)
        return runs, (inner, runs.alive[:, 0], runs.window, keys[1])

    def end(runs: Runs, inner: PyTree, alive: jax.Array) -> Runs:
        alive = alive[:, None]
        return runs._replace(
            inner=jax.tree.map(lambda x: x[:, None], inner),
            alive=alive,
            window=next_window(runs.window, config.windows, episode.segments, alive),
        )

    def init(theta: PyTree, key: jax.Array) -> Runs:
        def advance(runs: Runs, key: jax.Array) -> Runs:
            runs, arguments = begin(runs, key)
            _, carry = vmap(run, (None, 0, 0, 0, 0))(theta, *arguments)
            return end(runs, *carry)

        fresh_key, phase_key = jax.random.split(key)
        runs = fresh_runs(episode, fresh_key, config.particles, 1, 0)
        return put_out_of_step(advance, runs, blocks, phase_key)

    def estimate(theta: PyTree, state: Runs, key: jax.Array) -> tuple[Estimate, Runs]:
        state, arguments = begin(state, key)
        (values, carry), gradients = vmap(clipped, (None, 0, 0, 0, 0))(
            theta, *arguments
        )
        gradient = jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)
        return (
            Estimate(gradient, jnp.mean(values), jnp.std(values)),
            end(state, *carry),
        )

    return Estimator(init, estimate)


def _clip_norm(gradient: PyTree, max_norm: float) -> PyTree:
    """Clips a gradient to ``max_norm``, even if the sum of squares would overflow."""
    peaks = [jnp.max(jnp.abs(g), initial=0.0) for g in jax.tree.leaves(gradient)]
    peak = jnp.maximum(jnp.max(jnp.stack(peaks)), 1e-30)
    unit = jax.tree.map(lambda g: g / peak, gradient)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(u)) for u in jax.tree.leaves(unit)))
    length = jnp.minimum(peak, max_norm / jnp.maximum(norm, 1e-30))
    return jax.tree.map(lambda u, g: (length * u).astype(g.dtype), unit, gradient)
