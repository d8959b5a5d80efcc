"""The outer loop: meta-trains the controller, resumable and deterministic by seed."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_opt.checkpoints import Checkpoints
from meta_opt.meta_training.evolution import antithetic
from meta_opt.meta_training.unroll import unroll
from meta_opt.optimizers.controller import ControllerConfig, init_theta
from meta_opt.run_log import RunLog, progress_bar, write_config
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree

_log = logging.getLogger(__name__)

_CAP = 1.5
"""Bound on the log ratio to the hand-designed rule; also what a diverged run scores."""


@dataclasses.dataclass(frozen=True)
class MetaTrainConfig:
    """Settings of meta-training.

    Attributes:
        families: names of task families, taken in turn; a name may stand twice.
        outer_steps: length of meta-training.
        pairs: antithetic pairs a step.
        sigma: standard deviation of the perturbations of theta.
        learning_rate: of Adam on theta; decays by cosine to a tenth.
        seed: of everything.
        reparametrisation: see `unroll`.
        error_weight: weight of the error rate beside the loss in the objective.
        weight_decay: pull of theta's output weights towards zero, which is the
            hand-designed rule.
        checkpoint_every: outer steps between checkpoints.
        budget_seconds: stop (resumable) after this wall-clock time; 0 for no limit.
        controller: the controller's shape.
    """

    families: tuple[str, ...]
    outer_steps: int = 1000
    pairs: int = 12
    sigma: float = 0.05
    learning_rate: float = 6e-3
    seed: int = 0
    reparametrisation: float = 2.0
    error_weight: float = 1.0
    weight_decay: float = 0.0
    checkpoint_every: int = 50
    budget_seconds: float = 0.0
    controller: ControllerConfig = dataclasses.field(default_factory=ControllerConfig)

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not self.families:
            raise ValueError("families is empty; name at least one task family")
        if min(self.outer_steps, self.pairs, self.checkpoint_every) < 1:
            raise ValueError(
                f"outer_steps={self.outer_steps}, pairs={self.pairs} and "
                f"checkpoint_every={self.checkpoint_every} must be at least 1"
            )
        if self.sigma <= 0 or self.reparametrisation < 1:
            raise ValueError(
                f"sigma={self.sigma} must be above 0 and "
                f"reparametrisation={self.reparametrisation} at least 1"
            )


class MetaState(NamedTuple):
    """State of the outer loop."""

    theta: PyTree
    outer: optax.OptState
    average: PyTree
    """Average of theta over about the last hundred steps: what is shipped."""


class MetaResult(NamedTuple):
    """What meta-training leaves.

    Attributes:
        theta: the averaged weights.
        steps: outer steps done, over all sessions.
        seconds: spent by this session.
        finished: whether all outer steps are done.
    """

    theta: PyTree
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


def make_estimator(task: Task, config: MetaTrainConfig) -> Callable[..., Any]:
    """One compiled program: (theta, key) to an `Estimate` on one family.

    The horizon is drawn log-uniformly from the task's range inside the program.
    """
    low, high = (float(np.log(h)) for h in task.horizons)

    @jax.jit
    def estimate(theta: PyTree, key: jax.Array) -> Any:
        noise_key, run_key, horizon_key = jax.random.split(key, 3)
        log_steps = jax.random.uniform(horizon_key, (), minval=low, maxval=high)
        num_steps = jnp.exp(log_steps).astype(jnp.int32)
        hand = jax.tree.map(jnp.zeros_like, theta)

        def objective(thetas: PyTree) -> jax.Array:
            # The hand-designed rule (zero weights) runs along as the yardstick.
            everyone = jax.tree.map(
                lambda t, h: jnp.concatenate([t, h[None]]), thetas, hand
            )
            outcome = jax.vmap(
                lambda t: unroll(
                    task,
                    t,
                    config.controller,
                    run_key,
                    num_steps,
                    config.reparametrisation,
                )
            )(everyone)
            score = relative_score(outcome.loss[:-1], outcome.loss[-1])
            error = jnp.where(jnp.isfinite(outcome.error), outcome.error, 1.0)
            return score + config.error_weight * (error[:-1] - error[-1])

        return antithetic(objective, theta, noise_key, config.pairs, config.sigma)

    return estimate


def make_outer_step(config: MetaTrainConfig) -> tuple[Callable, Callable]:
    """Initial state and the jitted outer update.

    The gradient is scaled to unit norm, since only its direction is comparable between
    families; Adam on theta follows.
    """
    schedule = optax.cosine_decay_schedule(
        config.learning_rate, config.outer_steps, alpha=0.1
    )
    tx = optax.chain(optax.normalize_by_update_norm(), optax.adam(schedule, b1=0.9))

    def init(key: jax.Array) -> MetaState:
        theta = init_theta(key, config.controller)
        return MetaState(theta, tx.init(theta), jax.tree.map(jnp.copy, theta))

    @jax.jit
    def outer_step(state: MetaState, gradient: PyTree, step: jax.Array) -> MetaState:
        updates, outer = tx.update(gradient, state.outer, state.theta)
        theta = optax.apply_updates(state.theta, updates)
        shrink = 1.0 - schedule(step) * config.weight_decay
        theta = {**theta, "output": jax.tree.map(lambda w: shrink * w, theta["output"])}
        rate = jnp.maximum(0.02, 1.0 / (step + 1.0))
        average = jax.tree.map(lambda a, b: a + rate * (b - a), state.average, theta)
        return MetaState(theta, outer, average)

    return init, outer_step


def meta_train(
    config: MetaTrainConfig,
    tasks: Mapping[str, Task],
    workdir: str | Path,
    resolved_config: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> MetaResult:
    """Meta-trains, or goes on from the newest checkpoint in ``workdir``.

    Every random draw comes from the seed and the outer step's number, so an
    interrupted and resumed run ends in the same weights as an unbroken one.

    Args:
        config: settings.
        tasks: a task for each of ``config.families``.
        workdir: checkpoints, logs and the resolved config go there.
        resolved_config: what is written as the run's config.
        show_progress: whether to show a bar with the meta-loss.

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
    settings = {**dataclasses.asdict(config), "budget_seconds": None}
    write_config(workdir, resolved_config or settings, resuming=restored is not None)
    start = 0
    if restored is not None:
        start, state = restored.step, restored.state
        _log.info("resumed from outer step %d", start)
    log = RunLog(workdir, resume_step=start if restored else None)
    estimators = {name: make_estimator(tasks[name], config) for name in set(families)}
    recent: dict[str, float] = {}
    began = time.monotonic()
    step = start
    bar = progress_bar(
        config.outer_steps, start=start, label="meta-train", show=show_progress
    )
    try:
        while step < config.outer_steps:
            spent = time.monotonic() - began
            if config.budget_seconds and spent > config.budget_seconds:
                break
            name = families[step % len(families)]
            key = jax.random.fold_in(seed, step + 1)
            estimate = estimators[name](state.theta, key)
            state = outer_step(state, estimate.gradient, jnp.int32(step))
            step += 1
            score = float(estimate.centre)
            recent[name] = 0.8 * recent.get(name, score) + 0.2 * score
            log.write(
                step,
                {
                    f"meta_loss/{name}": score,
                    f"spread/{name}": float(estimate.spread),
                },
            )
            bar.set_postfix(meta_loss=f"{np.mean(list(recent.values())):+.3f}")
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
        state.average,
        step,
        time.monotonic() - began,
        finished=step >= config.outer_steps,
    )


def _is_sound(task: Task) -> bool:
    loss, _ = task.loss(task.init(jax.random.key(0)), task.splits.target)
    if not jnp.isfinite(loss):
        _log.warning("task %r is left out: its loss is %s at init", task.name, loss)
    return bool(jnp.isfinite(loss))
