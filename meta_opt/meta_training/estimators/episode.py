"""The input (`Episode`) and the interface (`Estimator`) of all estimators."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.types import PyTree


class Segment(Protocol):
    """One truncation window; see `Episode`."""

    def __call__(
        self, theta: PyTree, state: PyTree, key: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        """Returns the next inner state and the window's loss, float32 []."""
        ...


@dataclasses.dataclass(frozen=True)
class Episode:
    """One inner run, cut into windows; all functions are pure.

    Attributes:
        init: ``key -> state`` initialises the inner state: parameters, optimizer state
            and step; any pytree of arrays. It may contain random draws, such as the
            length of the run.
        segment: ``(theta, state, key) -> (state, loss)`` runs the next window. The
            batches depend on the key only, not on theta.
        segments: S, number of windows of an episode.
        weights: weights of the windows' losses in the objective, [S], non-negative;
            equal if None. ``(0, ..., 0, 1)`` is the final loss only.
    """

    init: Callable[[jax.Array], PyTree]
    segment: Segment
    segments: int
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Checks the number of windows and their weights."""
        if self.segments < 1:
            raise ValueError(f"segments={self.segments} must be at least 1")
        if self.weights is None:
            return
        if len(self.weights) != self.segments:
            raise ValueError(
                f"{len(self.weights)} weights for {self.segments} segments; give "
                "one each"
            )
        if min(self.weights) < 0 or not 0 < sum(self.weights) < np.inf:
            raise ValueError(
                f"weights={self.weights} must be finite, not negative, and not all 0"
            )

    @property
    def shares(self) -> np.ndarray:
        """The weights, normalised to sum to 1, float32 [S]."""
        weights = np.asarray(self.weights or (1.0,) * self.segments)
        return (weights / weights.sum()).astype(np.float32)


class Estimate(NamedTuple):
    """An estimated meta-gradient.

    Attributes:
        gradient: finite meta-gradient, a pytree like theta.
        loss: unbiased estimate of the objective (averaged over perturbed thetas for
            evolution strategies), [].
        spread: standard deviation over particles of the values whose mean is ``loss``,
            [].
    """

    gradient: PyTree
    loss: jax.Array
    spread: jax.Array


class Estimator(NamedTuple):
    """A meta-gradient estimator: two pure functions, to be jitted or vmapped.

    Attributes:
        init: ``(theta, key) -> state``. Estimators on single windows advance each
            particle to a random window, at about the cost of one episode.
        estimate: ``(theta, state, key) -> (Estimate, state)``. All randomness comes
            from the key. The state contains only arrays, so it can be checkpointed.
    """

    init: Callable[[PyTree, jax.Array], PyTree]
    estimate: Callable[[PyTree, PyTree, jax.Array], tuple[Estimate, PyTree]]


class Runs(NamedTuple):
    """Unfinished inner runs: P groups of C that share initial states and batches.

    Attributes:
        inner: inner states, leaves [P, C, ...].
        alive: whether all losses of this episode so far were finite, bool [P, C].
        window: index of the next window, int32 [P]; at 0 a new episode begins.
        noise: perturbation that the last losses are attributed to, [P, size of theta].
    """

    inner: PyTree
    alive: jax.Array
    window: jax.Array
    noise: jax.Array


def make_segment(
    step: Segment, truncation_length: int, checkpoint_every: int | None = None
) -> Segment:
    """Makes a window of inner steps; its loss is the mean over the steps.

    Args:
        step: one inner step, ``(theta, state, key) -> (state, loss)``.
        truncation_length: number of inner steps of a window.
        checkpoint_every: number of steps between the states that are stored for the
            backward pass; the steps in between are recomputed. None stores everything.
            The square root of ``truncation_length`` uses about the least memory.

    Returns:
        A segment for an `Episode`.

    Raises:
        ValueError: if ``truncation_length`` is not a multiple of ``checkpoint_every``.
    """
    every = truncation_length if checkpoint_every is None else checkpoint_every
    if every < 1 or truncation_length < 1 or truncation_length % every:
        raise ValueError(
            f"truncation_length={truncation_length} must be a positive multiple of "
            f"checkpoint_every={checkpoint_every}"
        )

    def segment(
        theta: PyTree, state: PyTree, key: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        def chunk(state: PyTree, keys: jax.Array) -> tuple[PyTree, jax.Array]:
            return jax.lax.scan(lambda s, k: step(theta, s, k), state, keys)

        keys = jax.random.split(key, (truncation_length // every, every))
        body = chunk
        if checkpoint_every is not None:
            body = jax.checkpoint(chunk, prevent_cse=False)
        state, losses = jax.lax.scan(body, state, keys)
        return state, jnp.mean(losses)

    return segment


def bounded(segment: Segment, cap: float) -> Callable:
    """Wraps a segment so that its loss is bounded and non-finite losses are handled.

    Returns:
        ``(theta, state, alive, key) -> (state, alive, loss)``; the loss is in
        ``[-cap, cap]``, and ``cap`` if the particle is dead or has just diverged.
    """

    def run(
        theta: PyTree, state: PyTree, alive: jax.Array, key: jax.Array
    ) -> tuple[PyTree, jax.Array, jax.Array]:
        state, loss = segment(theta, state, key)
        alive = alive & jnp.isfinite(loss)
        loss = jnp.where(alive, jnp.clip(loss, -cap, cap), cap)
        return state, alive, loss.astype(jnp.float32)

    return run


def choose(mask: jax.Array, yes: PyTree, no: PyTree) -> PyTree:
    """Selects leaves of ``yes`` where ``mask``, over the mask's leading axes."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)

    return jax.tree.map(leaf, yes, no)


def fresh_runs(
    episode: Episode, key: jax.Array, groups: int, members: int, noise_size: int
) -> Runs:
    """Initialises P = ``groups`` groups of C = ``members`` runs at their first window.

    Each is about to begin its first episode.
    """
    return Runs(
        inner=_initial(episode, jax.random.split(key, groups), members),
        alive=jnp.ones((groups, members), bool),
        window=jnp.zeros(groups, jnp.int32),
        noise=jnp.zeros((groups, noise_size)),
    )


def renew(episode: Episode, runs: Runs, keys: jax.Array) -> Runs:
    """Begins new episodes where the window is 0, and resets dead runs.

    Args:
        episode: the episode to run.
        runs: P groups of runs.
        keys: random keys of the initial states, [P].

    Returns:
        The runs, each ready for its next window.
    """
    begins = (runs.window == 0)[:, None]
    reset = begins | ~runs.alive
    # Initialising may cost more than a window; most calls need none.
    inner = jax.lax.cond(
        jnp.any(reset),
        lambda old: choose(reset, _initial(episode, keys, reset.shape[1]), old),
        lambda old: old,
        runs.inner,
    )
    return runs._replace(inner=inner, alive=runs.alive | begins)


def next_window(
    window: jax.Array, passed: int, segments: int, alive: jax.Array
) -> jax.Array:
    """Index of the next window after ``passed`` windows, int32 [P].

    It is 0, so that a new episode begins, at the end of an episode and where all C runs
    of a group are dead.
    """
    return jnp.where(jnp.any(alive, axis=1), (window + passed) % segments, 0)


def put_out_of_step(
    advance: Callable[[Runs, jax.Array], Runs], runs: Runs, phases: int, key: jax.Array
) -> Runs:
    """Advances each group a random number of times, uniform in [0, phases).

    The numbers are evenly spaced after one random offset, so that every estimate covers
    all parts of the episode as evenly as P groups can.
    """
    if phases == 1:
        return runs
    offset_key, run_key = jax.random.split(key)
    groups = len(runs.window)
    place = jax.random.uniform(offset_key) + jnp.arange(groups) / groups
    phase = jnp.floor(place * phases).astype(jnp.int32) % phases

    def body(t: jax.Array, runs: Runs) -> Runs:
        return choose(t < phase, advance(runs, jax.random.fold_in(run_key, t)), runs)

    return jax.lax.fori_loop(0, jnp.max(phase), body, runs)


def finite_or_zero(gradient: PyTree) -> PyTree:
    """The gradient, or zeros if any element of it is not finite."""
    leaves = [jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradient)]
    finite = jnp.all(jnp.stack(leaves))
    return choose(finite, gradient, jax.tree.map(jnp.zeros_like, gradient))


def _initial(episode: Episode, keys: jax.Array, members: int) -> PyTree:
    """Returns initial inner states, leaves [P, C, ...], identical along C."""
    states = jax.vmap(episode.init)(keys)
    return jax.tree.map(lambda x: jnp.stack([x] * members, axis=1), states)
