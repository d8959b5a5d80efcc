"""Meta-gradient estimators on task families, by name; each is one compiled program."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from meta_opt.meta_training.config import MetaTrainConfig
from meta_opt.meta_training.estimators.backpropagation import (
    BackpropagationConfig,
    bptt,
)
from meta_opt.meta_training.estimators.episode import Episode, Estimate, Estimator
from meta_opt.meta_training.estimators.evolution_strategies import (
    EvolutionConfig,
    nres,
    pes,
    truncated_es,
)
from meta_opt.meta_training.evolution import antithetic
from meta_opt.meta_training.parametrisation import Parametrisation
from meta_opt.meta_training.scoring import meta_objective
from meta_opt.meta_training.task_episode import task_episode
from meta_opt.meta_training.unroll import Outcome, unroll, unroll_with
from meta_opt.optimizers.baselines import baseline
from meta_opt.parallel.mesh import replicated
from meta_opt.parallel.particles import Vmap, particle_sharding, vmap_over
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree

_COMPILER_OPTIONS = {"cpu": {"xla_backend_optimization_level": 1}}
"""Halves the compilation time at the same speed (see the log in docs)."""


def _draw_horizon(task: Task, key: jax.Array) -> jax.Array:
    low, high = (float(np.log(h)) for h in task.horizons)
    log_steps = jax.random.uniform(key, (), minval=low, maxval=high)
    return jnp.round(jnp.exp(log_steps)).astype(jnp.int32)


def _stateless(estimate: Callable[[PyTree, jax.Array], Estimate]) -> Estimator:
    """Returns an estimator over whole runs, which has no state."""
    return Estimator(
        lambda theta, key: (), lambda theta, state, key: (estimate(theta, key), state)
    )


def _whole_run_bptt(
    task: Task, config: MetaTrainConfig, parts: Parametrisation, vmap: Vmap
) -> Estimator:
    """Mean over particles of normalised meta-gradients of log loss plus error.

    Each particle's gradient is scaled to unit norm, so that a chaotic run with an
    exploding gradient does not dominate the mean, and the mean is short where particles
    disagree.
    """

    def objective(trained: PyTree, key: jax.Array, steps: jax.Array) -> jax.Array:
        # The safeguard is not differentiable and doubles the branches to compile.
        outcome = unroll(
            task,
            parts.theta(trained),
            config.controller,
            key,
            steps,
            config.augmentation,
            differentiable_steps=task.horizons[1],
            safeguard=False,
        )
        value = jnp.log(outcome.loss + 1e-2) + config.error_weight * outcome.error
        return jnp.where(jnp.isfinite(value), value, 10.0)

    def estimate(theta: PyTree, key: jax.Array) -> Estimate:
        run_key, horizon_key = jax.random.split(key)
        steps = _draw_horizon(task, horizon_key)
        keys = jax.random.split(run_key, config.particles)
        values, gradients = vmap(jax.value_and_grad(objective), (None, 0, None))(
            theta, keys, steps
        )
        units = jax.vmap(_unit)(gradients)
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), units)
        return Estimate(mean, jnp.mean(values), optax.tree.norm(mean))

    return _stateless(estimate)


def _at_most_unit(gradient: PyTree) -> PyTree:
    """Clips a gradient to norm 1; zero if any element is not finite."""
    norm = optax.tree.norm(gradient)
    factor = jnp.where(jnp.isfinite(norm), 1.0 / jnp.maximum(norm, 1.0), 0.0)
    return jax.tree.map(lambda g: jnp.where(factor > 0, g * factor, 0.0), gradient)


def _unit(gradient: PyTree) -> PyTree:
    """Scales a gradient to norm 1; zero if any element is not finite."""
    norm = optax.tree.norm(gradient)
    valid = jnp.isfinite(norm) & (norm > 0)
    return jax.tree.map(lambda g: jnp.where(valid, g / norm, 0.0), gradient)


def _whole_run_es(
    task: Task, config: MetaTrainConfig, parts: Parametrisation, vmap: Vmap
) -> Estimator:
    """Antithetic evolution strategies over whole runs, scored against tuned AdamW.

    AdamW runs with the same initialisations, batches and augmentation at each of
    ``config.rates``; the learning rate with the lowest mean final loss is the
    reference. The population gets a fraction of AdamW's steps, log-uniform between
    ``config.least_budget`` and 1. There are ``config.particles`` seeds; pair i uses
    seed i modulo ``config.particles`` for both of its runs.
    """
    rates = jnp.array(config.rates, jnp.float32)

    def estimate(theta: PyTree, key: jax.Array) -> Estimate:
        noise_key, run_key, horizon_key, budget_key = jax.random.split(key, 4)
        full = _draw_horizon(task, horizon_key)
        least = jnp.log(jnp.float32(config.least_budget))
        budget = jnp.exp(least * jax.random.uniform(budget_key))
        steps = jnp.maximum(jnp.round(budget * full), 1).astype(jnp.int32)
        keys = jax.random.split(run_key, config.particles)
        turns = jnp.arange(config.pairs) % config.particles
        turns = jnp.concatenate([turns, turns, jnp.zeros(1, turns.dtype)])

        def reference(key: jax.Array, rate: jax.Array) -> Outcome:
            tx = baseline("adamw", full, learning_rate=rate, weight_decay=1e-2)
            return unroll_with(task, tx, key, full, config.augmentation)

        tuned = vmap(reference)(
            jnp.repeat(keys, len(rates)), jnp.tile(rates, config.particles)
        )
        # The learning rate with the lowest mean loss over seeds, as a user tunes it.
        losses = jnp.where(jnp.isfinite(tuned.loss), tuned.loss, jnp.inf)
        losses = losses.reshape(config.particles, -1)
        chosen = jnp.argmin(jnp.mean(losses, axis=0))
        loss = losses[:, chosen]
        error = tuned.error.reshape(config.particles, -1)[:, chosen]

        def objective(population: PyTree) -> jax.Array:
            outcome = vmap(
                lambda trained, key: unroll(
                    task,
                    parts.theta(trained),
                    config.controller,
                    key,
                    steps,
                    config.augmentation,
                )
            )(population, keys[turns])
            return meta_objective(
                outcome.loss,
                outcome.error,
                loss[turns],
                error[turns],
                config.error_weight,
            )

        found = antithetic(objective, theta, noise_key, config.pairs, config.sigma)
        return Estimate(_at_most_unit(found.gradient), found.centre, found.spread)

    return _stateless(estimate)


def _on_windows(
    build: Callable[[Episode, MetaTrainConfig, Vmap], Estimator],
    differentiable: bool = False,
) -> Callable[[Task, MetaTrainConfig, Parametrisation, Vmap], Estimator]:
    """Applies an estimator of `estimators` to a task's windows; unit-norm gradients."""

    def make(
        task: Task, config: MetaTrainConfig, parts: Parametrisation, vmap: Vmap
    ) -> Estimator:
        episode = task_episode(
            task,
            parts,
            config.windows,
            config.augmentation,
            config.error_weight,
            differentiable=differentiable,
        )
        inner = build(episode, config, vmap)

        def estimate(
            theta: PyTree, state: PyTree, key: jax.Array
        ) -> tuple[Estimate, PyTree]:
            found, state = inner.estimate(theta, state, key)
            return found._replace(gradient=_unit(found.gradient)), state

        return Estimator(inner.init, estimate)

    return make


def _population(config: MetaTrainConfig) -> EvolutionConfig:
    return EvolutionConfig(pairs=config.pairs, sigma=config.sigma)


_ESTIMATORS: dict[
    str, Callable[[Task, MetaTrainConfig, Parametrisation, Vmap], Estimator]
] = {
    "bptt": _whole_run_bptt,
    "es": _whole_run_es,
    "truncated_bptt": _on_windows(
        lambda e, c, v: bptt(e, BackpropagationConfig(c.particles, remat=False), v),
        differentiable=True,
    ),
    "truncated_es": _on_windows(lambda e, c, v: truncated_es(e, _population(c), v)),
    "pes": _on_windows(lambda e, c, v: pes(e, _population(c), v)),
    "nres": _on_windows(lambda e, c, v: nres(e, _population(c), v)),
}


def make_estimator(
    task: Task,
    config: MetaTrainConfig,
    parts: Parametrisation,
    mesh: Mesh | None = None,
    longest: int | None = None,
) -> Estimator:
    """Returns the configured estimator for one family, jitted.

    The horizon is drawn log-uniformly from the task's range inside the program, so that
    it is compiled once.

    Args:
        task: task of the family.
        config: settings of meta-training.
        parts: the meta-trained parameters, which the gradient is with respect to.
        mesh: mesh from `particle_mesh`: particles and the state of their runs are
            sharded over its devices, and the estimate is replicated. None for one
            device.
        longest: upper bound on the length of runs; None for the task's largest horizon.
    """
    low, high = (max(steps, config.shortest) for steps in task.horizons)
    if longest is not None:
        low, high = (min(steps, longest) for steps in (low, high))
    task = dataclasses.replace(task, horizons=(low, high))
    estimator = _ESTIMATORS[config.estimator](task, config, parts, vmap_over(mesh))
    options = _COMPILER_OPTIONS.get(jax.default_backend())
    if mesh is None:
        return Estimator(
            *(jax.jit(function, compiler_options=options) for function in estimator)
        )
    whole, divided = replicated(mesh), particle_sharding(mesh)
    return Estimator(
        jax.jit(estimator.init, compiler_options=options, out_shardings=divided),
        jax.jit(
            estimator.estimate,
            compiler_options=options,
            out_shardings=(whole, divided),
        ),
    )
