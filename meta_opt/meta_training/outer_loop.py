"""The outer loop: meta-trains the controller, resumable and deterministic by seed."""

import concurrent.futures
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
from tqdm import tqdm

from meta_opt.checkpoints import Checkpoints
from meta_opt.meta_training.evolution import Estimate, antithetic
from meta_opt.meta_training.unroll import Augmentation, unroll
from meta_opt.meta_training.validation import Validation
from meta_opt.optimizers.controller import ControllerConfig, init_theta
from meta_opt.run_log import RunLog, progress_bar, write_config
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree, near_match

_log = logging.getLogger(__name__)

_CAP = 1.5
"""Bound on the log ratio to the hand-designed rule; also what a diverged run scores."""
_MAPPINGS = 6000
"""Memory mappings that a program takes on the CPU."""
_COMPILER_OPTIONS = {"cpu": {"xla_backend_optimization_level": 1}}
"""Half the compilation time of the default, at the same speed (see the log in docs)."""


@dataclasses.dataclass(frozen=True)
class MetaTrainConfig:
    """Settings of meta-training.

    Attributes:
        families: names of task families, taken in turn, one for each device a step; a
            name may stand twice.
        outer_steps: length of meta-training.
        estimator: ``bptt`` (back-propagation through whole runs) or ``es``
            (antithetic evolution strategies over whole runs).
        particles: of ``bptt``: inner runs a family, each with its own seed.
        pairs: of ``es``: antithetic pairs a family.
        sigma: of ``es``: standard deviation of the perturbations of theta.
        learning_rate: of Adam on theta; decays by cosine to a tenth.
        seed: of everything.
        augmentation: see `Augmentation`.
        error_weight: weight of the error rate beside the log loss in the objective.
        weight_decay: pull of theta's output weights towards zero, which is the
            hand-designed rule.
        checkpoint_every: outer steps between checkpoints.
        validate_every: outer steps between meta-validations; 0 for none.
        stop_after: stop (resumable) after this many outer steps; 0 for all of them.
        budget_seconds: stop (resumable) after this wall-clock time; 0 for no limit.
        controller: the controller's shape.
    """

    families: tuple[str, ...]
    outer_steps: int = 1000
    estimator: str = "bptt"
    particles: int = 4
    pairs: int = 12
    sigma: float = 0.05
    learning_rate: float = 3e-3
    seed: int = 0
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    error_weight: float = 1.0
    weight_decay: float = 0.0
    checkpoint_every: int = 50
    validate_every: int = 0
    stop_after: int = 0
    budget_seconds: float = 0.0
    controller: ControllerConfig = dataclasses.field(default_factory=ControllerConfig)

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not self.families:
            raise ValueError("families is empty; name at least one task family")
        for name in ("outer_steps", "particles", "pairs", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.sigma <= 0:
            raise ValueError(f"sigma={self.sigma} must be above 0")
        if self.estimator not in ESTIMATORS:
            raise ValueError(
                f"no estimator {self.estimator!r}"
                f"{near_match(self.estimator, ESTIMATORS)}; there are "
                f"{', '.join(ESTIMATORS)}"
            )


class MetaState(NamedTuple):
    """State of the outer loop."""

    theta: PyTree
    outer: optax.OptState
    average: PyTree
    """Average of theta over about the last fifty steps."""
    best: PyTree
    """The average with the best meta-validation; the latest one without validation."""
    best_score: jax.Array


class MetaResult(NamedTuple):
    """What meta-training leaves.

    Attributes:
        theta: the averaged weights, those of the best meta-validation if there is one.
        score: their meta-validation, inf without.
        steps: outer steps done, over all sessions.
        seconds: spent by this session.
        finished: whether all outer steps, or those up to ``stop_after``, are done.
    """

    theta: PyTree
    score: float
    steps: int
    seconds: float
    finished: bool


def relative_score(loss: jax.Array, reference: jax.Array) -> jax.Array:
    """Log of loss over reference, bounded; what is not finite scores worst.

    Each task is judged on its own scale: 0 is as good as the hand-designed rule on the
    same initialisation and batches, below is better.
    """
    ratio = jnp.log((loss + 1e-2) / (reference + 1e-2))
    return jnp.where(jnp.isfinite(ratio), jnp.clip(ratio, -_CAP, _CAP), _CAP)


def _draw_horizon(task: Task, key: jax.Array) -> jax.Array:
    low, high = (float(np.log(h)) for h in task.horizons)
    log_steps = jax.random.uniform(key, (), minval=low, maxval=high)
    return jnp.round(jnp.exp(log_steps)).astype(jnp.int32)


def _backpropagation(
    task: Task, config: MetaTrainConfig
) -> Callable[[PyTree, jax.Array], Estimate]:
    """Mean over particles of unit meta-gradients of log loss and error.

    Scaled to unit length, a run in which small changes grow without bound (chaos)
    has one vote like any other, and where runs disagree their mean is short.
    """

    def objective(theta: PyTree, key: jax.Array, steps: jax.Array) -> jax.Array:
        # The safeguard has no derivative and doubles the branches to compile.
        outcome = unroll(
            task,
            theta,
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
        values, gradients = jax.vmap(jax.value_and_grad(objective), (None, 0, None))(
            theta, keys, steps
        )
        units = jax.vmap(_unit)(gradients)
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), units)
        return Estimate(mean, jnp.mean(values), optax.global_norm(mean))

    return estimate


def _unit(gradient: PyTree) -> PyTree:
    """Scaled to norm 1; zero if any of it is not finite."""
    norm = optax.global_norm(gradient)
    sound = jnp.isfinite(norm) & (norm > 0)
    return jax.tree.map(lambda g: jnp.where(sound, g / norm, 0.0), gradient)


def _evolution(
    task: Task, config: MetaTrainConfig
) -> Callable[[PyTree, jax.Array], Estimate]:
    """Antithetic evolution strategies over whole runs; scaled to unit norm."""

    def estimate(theta: PyTree, key: jax.Array) -> Estimate:
        noise_key, run_key, horizon_key = jax.random.split(key, 3)
        steps = _draw_horizon(task, horizon_key)
        hand = jax.tree.map(jnp.zeros_like, theta)

        def objective(thetas: PyTree) -> jax.Array:
            # The hand-designed rule (zero weights) runs along as the yardstick.
            everyone = jax.tree.map(
                lambda t, h: jnp.concatenate([t, h[None]]), thetas, hand
            )
            outcome = jax.vmap(
                lambda t: unroll(
                    task, t, config.controller, run_key, steps, config.augmentation
                )
            )(everyone)
            score = relative_score(outcome.loss[:-1], outcome.loss[-1])
            error = jnp.where(jnp.isfinite(outcome.error), outcome.error, 1.0)
            return score + config.error_weight * (error[:-1] - error[-1])

        found = antithetic(objective, theta, noise_key, config.pairs, config.sigma)
        return found._replace(gradient=_unit(found.gradient))

    return estimate


ESTIMATORS = {"bptt": _backpropagation, "es": _evolution}


def make_estimator(
    task: Task, config: MetaTrainConfig
) -> Callable[[PyTree, jax.Array], Estimate]:
    """(theta, key) to an `Estimate` on one family, to be compiled once.

    The horizon is drawn log-uniformly from the task's range inside the program.
    """
    estimate = ESTIMATORS[config.estimator](task, config)
    return jax.jit(
        estimate, compiler_options=_COMPILER_OPTIONS.get(jax.default_backend())
    )


def make_outer_step(config: MetaTrainConfig) -> tuple[Callable, Callable]:
    """Initial state and the jitted outer update: Adam on theta."""
    schedule = optax.cosine_decay_schedule(
        config.learning_rate, config.outer_steps, alpha=0.1
    )
    tx = optax.adam(schedule, b1=0.9, b2=0.99)

    def init(key: jax.Array) -> MetaState:
        theta = init_theta(key, config.controller)
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
        theta = {**theta, "output": jax.tree.map(lambda w: shrink * w, theta["output"])}
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
) -> MetaResult:
    """Meta-trains, or goes on from the newest checkpoint in ``workdir``.

    Each step takes as many families as there are local devices, one on each, and a
    family stays with its device, so that it is compiled once. Every random draw comes
    from the seed and the outer step's number, so an interrupted and resumed run ends
    in the same weights as an unbroken one.

    Args:
        config: settings.
        tasks: a task for each of ``config.families``.
        workdir: checkpoints, logs and the resolved config go there.
        resolved_config: what is written as the run's config.
        show_progress: whether to show bars.
        validation: judges the averaged weights every ``config.validate_every`` steps
            and at the end; the best ones are kept.

    Returns:
        The result; not ``finished`` if the budget of seconds ran out.

    Raises:
        ValueError: a family without task, or no task left because every loss is not
            finite at the start.
        CheckpointMismatchError: ``workdir`` holds another controller's checkpoint.
    """
    families = [name for name in config.families if _is_sound(tasks[name])]
    if not families:
        raise ValueError("no family left: every task's loss is not finite at its start")
    workdir = Path(workdir)
    init, outer_step = make_outer_step(config)
    seed = jax.random.key(config.seed)
    state = init(jax.random.fold_in(seed, 0))
    checkpoints = Checkpoints(workdir / "checkpoints", keep_best=0)
    restored = checkpoints.restore(state)
    limits = {"budget_seconds": None, "stop_after": None}
    settings = {**dataclasses.asdict(config), **limits}
    write_config(workdir, resolved_config or settings, resuming=restored is not None)
    start = 0
    if restored is not None:
        start, state = restored.step, restored.state
        _log.info("resumed from outer step %d", start)
    # Committed to one device like all that comes after, else jit compiles twice.
    home = jax.local_devices()[0]
    state = jax.device_put(state, home)
    log = RunLog(workdir, resume_step=start if restored else None)
    began = time.monotonic()
    last = min(config.stop_after or config.outer_steps, config.outer_steps)
    programs = []
    if start < last:
        programs = _compile(families, tasks, config, state.theta, show_progress)
    recent: dict[str, float] = {}
    step = start
    bar = progress_bar(
        config.outer_steps, start=start, label="meta-train", show=show_progress
    )
    try:
        while step < last:
            spent = time.monotonic() - began
            if config.budget_seconds and spent > config.budget_seconds:
                break
            key = jax.random.fold_in(seed, step + 1)
            turns = _turns(len(families), step)
            estimates = [
                programs[turn](state.theta, jax.random.fold_in(key, i))
                for i, turn in enumerate(turns)
            ]
            gradients = [jax.device_put(e.gradient, home) for e in estimates]
            state = outer_step(state, gradients, jnp.int32(step))
            step += 1
            row = {}
            for turn, estimate in zip(turns, estimates, strict=True):
                name, score = families[turn], float(estimate.centre)
                recent[name] = 0.8 * recent.get(name, score) + 0.2 * score
                row[f"meta_loss/{name}"] = score
                row[f"spread/{name}"] = float(estimate.spread)
            due = config.validate_every and step % config.validate_every == 0
            if validation and (due or step == last):
                scores = validation(state.average)
                row |= {f"validation/{n}": s for n, s in scores.items()}
                mean = float(np.mean(list(scores.values())))
                row["validation/mean"] = mean
                if mean < float(state.best_score):
                    state = state._replace(
                        best=state.average, best_score=jnp.float32(mean)
                    )
            elif not validation:
                state = state._replace(best=state.average)
            log.write(step, row)
            shown = {"meta_loss": f"{np.mean(list(recent.values())):+.3f}"}
            if validation:
                shown["best"] = f"{float(state.best_score):+.3f}"
            bar.set_postfix(shown)
            bar.update()
            if step % config.checkpoint_every == 0:
                checkpoints.save(step, state, {"families": families})
    finally:
        # An interrupt keeps what is done: state and step always belong together.
        checkpoints.save(step, state, {"families": families})
        checkpoints.close()
        log.close()
        bar.close()
    return MetaResult(
        state.best,
        float(state.best_score),
        step,
        time.monotonic() - began,
        finished=step >= last,
    )


def _turns(families: int, step: int) -> list[int]:
    """Indices of this step's families, one a device; each keeps to its device."""
    devices = min(len(jax.local_devices()), families)
    rounds = -(-families // devices)
    first = step % rounds * devices
    return [i for i in range(first, first + devices) if i < families]


def _compile(
    families: Sequence[str],
    tasks: Mapping[str, Task],
    config: MetaTrainConfig,
    theta: PyTree,
    show_progress: bool,
) -> list[Callable[[PyTree, jax.Array], Estimate]]:
    """A program for each place in ``families``, compiled side by side."""
    devices = jax.local_devices()
    places = [(name, i % len(devices)) for i, name in enumerate(families)]

    def build(place: tuple[str, int]) -> Callable[[PyTree, jax.Array], Estimate]:
        name, device = place
        jitted = make_estimator(tasks[name], config)
        target = devices[device]

        def program(theta: PyTree, key: jax.Array) -> Estimate:
            return jitted(*jax.device_put((theta, key), target))

        return program

    programs = {place: build(place) for place in dict.fromkeys(places)}
    _check_mappings(len(programs))

    def warm(place: tuple[str, int]) -> None:
        jax.block_until_ready(programs[place](theta, jax.random.key(0)))

    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        done = pool.map(warm, programs)
        for _ in tqdm(
            done, desc="compile", total=len(programs), disable=not show_progress
        ):
            pass
    return [programs[place] for place in places]


def _check_mappings(programs: int) -> None:
    """Raises where Linux allows fewer memory mappings than the kernels will take.

    XLA's CPU backend maps every kernel by itself; beyond the limit it crashes.
    """
    limit = Path("/proc/sys/vm/max_map_count")
    if jax.default_backend() != "cpu" or not limit.is_file():
        return
    allowed, needed = int(limit.read_text()), _MAPPINGS * programs
    if allowed < needed:
        raise RuntimeError(
            f"{programs} programs need about {needed} memory mappings and "
            f"vm.max_map_count is {allowed}: run `sudo sysctl -w "
            f"vm.max_map_count={2 * needed}`, or name fewer families"
        )


def _is_sound(task: Task) -> bool:
    loss, _ = task.loss(task.init(jax.random.key(0)), task.splits.test)
    if not jnp.isfinite(loss):
        _log.warning("task %r is left out: its loss is %s at init", task.name, loss)
    return bool(jnp.isfinite(loss))
