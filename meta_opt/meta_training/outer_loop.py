"""The outer loop: meta-trains the controller, resumable and deterministic by seed."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from meta_opt.checkpoints import Checkpoints
from meta_opt.interruption import Interrupted, Signals, catch_signals
from meta_opt.meta_training.config import MetaTrainConfig
from meta_opt.meta_training.parametrisation import Parametrisation
from meta_opt.meta_training.programs import FamilyPrograms
from meta_opt.meta_training.validation import Validation
from meta_opt.optimizers.controller import init_theta
from meta_opt.parallel.mesh import replicated
from meta_opt.parallel.particles import PARTICLES, check_particles, particle_mesh
from meta_opt.parallel.processes import check_shared, json_from_first, largest
from meta_opt.parallel.workdir import hold_workdir
from meta_opt.run_log import RunLog, progress_bar, write_config
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree

_log = logging.getLogger(__name__)


class MetaState(NamedTuple):
    """State of the outer loop."""

    theta: PyTree
    """The meta-trained parameters, see `Parametrisation`."""
    outer: optax.OptState
    average: PyTree
    """Exponential moving average of theta over about the last fifty steps."""
    best: PyTree
    """The average with the best meta-validation; without validation the latest one."""
    best_score: jax.Array
    inner: tuple[PyTree, ...] = ()
    """State of each program's unfinished inner runs; () for whole-run estimators."""


class MetaResult(NamedTuple):
    """Result of meta-training.

    Attributes:
        theta: averaged weights with the best meta-validation; without validation the
            final ones.
        last: averaged weights at the end.
        score: best meta-validation score, that of ``theta``; inf without validation.
        steps: number of completed outer steps, including those before a resume.
        seconds: wall-clock time of this process.
        finished: whether all outer steps, or those up to ``stop_after``, are completed.
    """

    theta: PyTree
    last: PyTree
    score: float
    steps: int
    seconds: float
    finished: bool


def make_outer_step(
    config: MetaTrainConfig, parts: Parametrisation
) -> tuple[Callable, Callable]:
    """Returns functions for the initial state and the jitted outer update by Adam."""
    schedule = optax.cosine_decay_schedule(
        config.learning_rate, config.outer_steps, alpha=0.1
    )
    tx = optax.adam(schedule, b1=0.9, b2=0.99)

    def init() -> MetaState:
        theta = parts.trained()
        return MetaState(
            theta,
            tx.init(theta),
            average=jax.tree.map(jnp.copy, theta),
            best=jax.tree.map(jnp.copy, theta),
            best_score=jnp.float32(jnp.inf),
        )

    @jax.jit
    def outer_step(
        state: MetaState, gradients: Sequence[PyTree], step: jax.Array
    ) -> MetaState:
        gradient = jax.tree.map(lambda *g: sum(g) / len(g), *gradients)
        updates, outer = tx.update(gradient, state.outer, state.theta)
        theta = optax.apply_updates(state.theta, updates)
        shrink = 1.0 - schedule(step) * config.weight_decay
        theta = parts.pulled(theta, shrink)
        rate = jnp.maximum(0.04, 1.0 / (step + 1.0))
        average = jax.tree.map(lambda a, b: a + rate * (b - a), state.average, theta)
        return state._replace(theta=theta, outer=outer, average=average)

    return init, outer_step


def meta_train(
    config: MetaTrainConfig,
    tasks: Mapping[str, Task],
    workdir: str | Path,
    resolved_config: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    validation: Validation | None = None,
    start: PyTree | None = None,
) -> MetaResult:
    """Meta-trains, or resumes from the newest checkpoint in ``workdir``.

    With ``config.parallel="families"`` each step takes as many families as there are
    local devices, one per device; a family stays with its device, so that it is
    compiled once. With ``"particles"`` each step takes one family, whose particles are
    divided over the devices of all processes; every process calls this with the same
    arguments, and all of them must be able to access ``workdir``. Every random draw is
    derived from the seed and the index of the outer step, so an interrupted and resumed
    run ends with the same weights as an uninterrupted one.

    Args:
        config: settings of meta-training.
        tasks: task of each family in ``config.families``.
        workdir: folder for checkpoints, logs and the resolved config.
        resolved_config: contents of the config file; None for ``config``.
        show_progress: whether to show progress bars.
        validation: evaluates the averaged weights every ``config.validate_every`` steps
            and at the end; the best weights are kept.
        start: initial weights of the controller; None for random ones with zero output
            weights.

    Returns:
        The result; not ``finished`` if ``config.budget_seconds`` ran out.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after the outer step and its checkpoint.
        ValueError: a family without a task, no task with a finite initial loss,
            particles that cannot be divided evenly over the devices, several processes
            without ``parallel="particles"`` or without a common ``workdir``, or
            ``workdir`` is in use by another run.
        CheckpointMismatchError: the checkpoint in ``workdir`` belongs to another
            controller.
    """
    mesh = _mesh(config)
    with hold_workdir(workdir), catch_signals() as signals:
        return _meta_train(
            config,
            mesh,
            tasks,
            Path(workdir),
            resolved_config,
            show_progress,
            validation,
            start,
            signals,
        )


def _meta_train(
    config: MetaTrainConfig,
    mesh: Mesh | None,
    tasks: Mapping[str, Task],
    workdir: Path,
    resolved_config: Mapping[str, Any] | None,
    show_progress: bool,
    validation: Validation | None,
    start: PyTree | None,
    signals: Signals,
) -> MetaResult:
    seed = jax.random.key(config.seed)
    if start is None:
        start = init_theta(jax.random.fold_in(seed, 0), config.controller)
    parts = Parametrisation(start, config.controller, config.direct, config.keep_direct)
    show_progress = show_progress and jax.process_index() == 0
    programs = FamilyPrograms(config, tasks, parts, mesh, show_progress)
    # Commit the state to its device like later states, else jit compiles twice.
    home = jax.local_devices()[0] if mesh is None else replicated(mesh)
    init, outer_step = make_outer_step(config, parts)
    state = jax.device_put(init(), home)
    key = jax.random.fold_in(seed, config.outer_steps + 1)
    state = state._replace(inner=programs.init(state.theta, key))
    if mesh is None:
        state = jax.device_put(state, home)
    check_shared(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", keep_best=0)
    restored = checkpoints.restore(state)
    limits = {"budget_seconds": None, "stop_after": None}
    write_config(
        workdir,
        resolved_config or {**dataclasses.asdict(config), **limits},
        resuming=restored is not None,
        may_change=("checkpoint_every",),
    )
    step = 0
    if restored is not None:
        step, state = restored.step, restored.state
        _log.info("resumed from outer step %d", step)
    log = RunLog(workdir, resume_step=step if restored else None)
    began = time.monotonic()
    last = min(config.stop_after or config.outer_steps, config.outer_steps)
    recent: dict[str, float] = {}
    bar = progress_bar(
        config.outer_steps, start=step, label="meta-train", show=show_progress
    )
    clean_exit = False
    # The last state whose log line is written, so that log and checkpoint agree.
    logged = step, state
    try:
        while step < last:
            if config.budget_seconds and (
                json_from_first(time.monotonic() - began) > config.budget_seconds
            ):
                break
            estimates, inner = programs(
                state.theta, state.inner, step, jax.random.fold_in(seed, step + 1)
            )
            gradients = [jax.device_put(e.gradient, home) for _, e in estimates]
            state = outer_step(state._replace(inner=inner), gradients, jnp.int32(step))
            step += 1
            row = {}
            for name, estimate in estimates:
                score = float(estimate.loss)
                recent[name] = 0.8 * recent.get(name, score) + 0.2 * score
                row[f"meta_loss/{name}"] = score
                row[f"spread/{name}"] = float(estimate.spread)
            due = config.validate_every and step % config.validate_every == 0
            if validation is None:
                state = state._replace(best=state.average)
            elif due or step == last:
                state, scores = _validated(state, validation, parts, home)
                row |= scores
            log.write(step, row)
            shown = {"meta_loss": f"{np.mean(list(recent.values())):+.3f}"}
            if validation:
                shown["best"] = f"{float(state.best_score):+.3f}"
            bar.set_postfix(shown)
            bar.update()
            logged = step, state
            if step % config.checkpoint_every == 0:
                checkpoints.save(step, state, {"families": programs.families})
            if step < last and (signum := largest(signals.received or 0)):
                clean_exit = True
                raise Interrupted(signum, step)
        clean_exit = True
    finally:
        # Save completed steps after an error. With several processes one of them cannot
        # save alone, so the latest checkpoint must do.
        if clean_exit or jax.process_count() == 1:
            checkpoints.save(*logged, {"families": programs.families})
            checkpoints.close()
        log.close()
        bar.close()
    return MetaResult(
        parts.theta(_local(state.best)),
        parts.theta(_local(state.average)),
        float(state.best_score),
        step,
        time.monotonic() - began,
        finished=step >= last,
    )


def _validated(
    state: MetaState, validation: Validation, parts: Parametrisation, home: Any
) -> tuple[MetaState, dict[str, float]]:
    """Evaluates the averaged weights, and keeps them if they are the best so far.

    Args:
        state: state of the outer loop.
        validation: meta-validation, the same in all processes.
        parts: map from the meta-trained parameters to the controller's weights.
        home: device or sharding of the state.

    Returns:
        The new state, and metrics for the log.
    """
    scores = validation(parts.theta(_local(state.average)))
    mean = json_from_first(float(np.mean(list(scores.values()))))
    row = {f"validation/{name}": score for name, score in scores.items()}
    if mean < float(state.best_score):
        score = jax.device_put(jnp.float32(mean), home)
        state = state._replace(best=state.average, best_score=score)
    return state, {**row, "validation/mean": mean}


def _mesh(config: MetaTrainConfig) -> Mesh | None:
    """Returns the mesh of the particles; None if devices take different families."""
    if config.parallel == "families":
        if jax.process_count() > 1:
            raise ValueError(
                f"parallel='families' supports one process, but there are "
                f"{jax.process_count()}: set parallel='particles'"
            )
        return None
    mesh = particle_mesh()
    if config.estimator in ("bptt", "truncated_bptt"):
        check_particles(mesh, "particles", config.particles)
    elif config.estimator != "es":
        check_particles(mesh, "pairs", config.pairs)
    else:
        # Pairs and the unperturbed theta: an odd number of runs.
        runs, devices = 2 * config.pairs + 1, mesh.shape[PARTICLES]
        _log.info(
            "%d runs over %d devices: %d on each, %d slots idle",
            runs,
            devices,
            -(-runs // devices),
            -runs % devices,
        )
    return mesh


def _local(tree: PyTree) -> PyTree:
    """Returns this process's first copy of replicated arrays."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)
