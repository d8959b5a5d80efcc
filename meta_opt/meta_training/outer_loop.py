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
    """What is trained, see `Parametrisation`."""
    outer: optax.OptState
    average: PyTree
    """Average of it over about the last fifty steps."""
    best: PyTree
    """The average with the best meta-validation; the latest one without validation."""
    best_score: jax.Array
    inner: tuple[PyTree, ...] = ()
    """Of each program: inner runs under way; () where runs are whole."""


class MetaResult(NamedTuple):
    """Result of meta-training.

    Attributes:
        theta: averaged weights, at the best meta-validation if there is one.
        last: averaged weights at the end.
        score: meta-validation score of ``theta``; inf without meta-validation.
        steps: number of completed outer steps, over all sessions.
        seconds: time spent by this session.
        finished: whether all outer steps, or those up to ``stop_after``, are done.
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
    """Returns the initial state and the jitted outer update, Adam on theta."""
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

    With ``config.parallel`` at ``families`` each step takes as many families as there
    are local devices, one on each, and a family stays with its device, so that it is
    compiled once. At ``particles`` it takes one family, whose particles are divided
    over the devices of all processes; each process calls this with the same arguments,
    and ``workdir`` is a folder that all of them see. Every random draw comes from the
    seed and the outer step's number, so an interrupted and resumed run ends in the
    same weights as an unbroken one.

    Args:
        config: settings.
        tasks: a task for each of ``config.families``.
        workdir: folder for checkpoints, logs and the resolved config.
        resolved_config: configuration to write for the run.
        show_progress: whether to show progress bars.
        validation: evaluates the averaged weights every ``config.validate_every`` steps
            and at the end; the best ones are kept.
        start: initial weights of the controller; None for random ones, with zero
            output weights.

    Returns:
        The result; not ``finished`` if the budget of seconds ran out.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after finishing and saving the outer step.
        ValueError: a family has no task, no task is left because no initial loss is
            finite, the devices cannot share the particles evenly, several processes
            have no ``parallel="particles"`` or no common ``workdir``, or another run
            uses ``workdir``.
        CheckpointMismatchError: ``workdir`` holds another controller's checkpoint.
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
    # Committed to devices like later states; otherwise jit compiles twice.
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
    unbroken = False
    # A step's state and its line of the log are saved together or not at all.
    whole = step, state
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
            whole = step, state
            if step % config.checkpoint_every == 0:
                checkpoints.save(step, state, {"families": programs.families})
            if step < last and (signum := largest(signals.received or 0)):
                unbroken = True
                raise Interrupted(signum, step)
        unbroken = True
    finally:
        # Save completed work on errors. With several processes one cannot save
        # alone, so the run resumes from the newest checkpoint.
        if unbroken or jax.process_count() == 1:
            checkpoints.save(*whole, {"families": programs.families})
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
        validation: validation, the same in all processes.
        parts: trained parts of the controller's weights.
        home: device or sharding of the state.

    Returns:
        The new state, and a row of the log.
    """
    scores = validation(parts.theta(_local(state.average)))
    mean = json_from_first(float(np.mean(list(scores.values()))))
    row = {f"validation/{name}": score for name, score in scores.items()}
    if mean < float(state.best_score):
        score = jax.device_put(jnp.float32(mean), home)
        state = state._replace(best=state.average, best_score=score)
    return state, {**row, "validation/mean": mean}


def _mesh(config: MetaTrainConfig) -> Mesh | None:
    """Returns the mesh of particles; None if devices share families."""
    if config.parallel == "families":
        if jax.process_count() > 1:
            raise ValueError(
                f"parallel='families' is for one process, and there are "
                f"{jax.process_count()}: set parallel='particles'"
            )
        return None
    mesh = particle_mesh()
    if config.estimator in ("bptt", "truncated_bptt"):
        check_particles(mesh, "particles", config.particles)
    elif config.estimator != "es":
        check_particles(mesh, "pairs", config.pairs)
    else:
        # With theta itself the number is never even.
        runs, devices = 2 * config.pairs + 1, mesh.shape[PARTICLES]
        _log.info(
            "%d runs over %d devices: %d on each, %d of the places idle",
            runs,
            devices,
            -(-runs // devices),
            -runs % devices,
        )
    return mesh


def _local(tree: PyTree) -> PyTree:
    """Returns the copy of replicated arrays on this process's first device."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)
