"""Trains within a time limit, and returns the best parameters of the run."""

import dataclasses
import functools
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from meta_opt.checkpoints import Checkpoints
from meta_opt.finetuning.early_stopping import EarlyStopping
from meta_opt.finetuning.loop import RunResult
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.runs import run
from meta_opt.finetuning.step_program import CachedStep
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.evaluations import Evaluations
from meta_opt.predictor.fitting import FitCall
from meta_opt.predictor.plan import TrainingPlan, loop_of
from meta_opt.predictor.presets import Preset
from meta_opt.predictor.snapshots import Soup, greedy_soup
from meta_opt.tuning.injected import injected_learned
from meta_opt.types import PyTree, from_config
from meta_opt.workloads.workload import Workload

STACKED = r"(^|/)layers/"
"""Leaves with a leading layer axis in the models of this repository."""
_TIMED_STEPS = 6
_FEWEST_STEPS = 20
_EVALUATING, _FEWEST_EVALUATIONS = 0.25, 4
"""Largest share of the remaining time for evaluations, and the fewest of them."""
_RESERVE = 0.06
"""Share of the remaining time that is kept because step times vary."""


class Trained(NamedTuple):
    """The outcome of a training run.

    Attributes:
        params: the best trainable parameters, on the host.
        frozen: parameters that do not train.
        validation: metrics of these parameters on validation samples.
        result: of the run.
        seconds: mean time of a step.
        decisions: made while training.
    """

    params: PyTree
    frozen: PyTree
    validation: dict[str, float]
    result: RunResult
    seconds: float
    decisions: list[Decision]


def train(workload: Workload, plan: TrainingPlan, call: FitCall) -> Trained:
    """Runs `meta_opt.finetuning.run` with the learned optimizer.

    With a time limit, a few steps are timed first, and the run has as many steps as
    fit. It stops early when validation no longer improves. The best parameters of the
    run, or the average of the best ones, are returned.

    An interrupted run in the call's folder is resumed; the outcome is that of a run
    without interruption.

    Args:
        workload: must have an evaluation.
        plan: the longest run, and the metric that selects the parameters.
        call: limits and folder of the call.

    Raises:
        ValueError: a time limit that is too short for a run.
        Interrupted: on SIGINT or SIGTERM, after saving.
    """
    loop, workdir = plan.loop, call.run_folder
    decisions: list[Decision] = []
    evaluate = workload.evaluate
    assert evaluate is not None
    step = CachedStep()
    timing = _Timing()
    if call.clock.limit is not None:
        loop, found = call.record.decide(
            "length",
            lambda: _that_fits(workload, plan, call, step, timing),
            dataclasses.asdict,
            functools.partial(from_config, LoopConfig),
        )
        decisions += found
    if workdir is not None:
        # Stopping is decided at evaluations, so each of them has a checkpoint.
        loop = dataclasses.replace(loop, checkpoint_every=loop.eval_every)
    watch = _Watch(workload, plan, loop, call, timing)
    result = run(
        dataclasses.replace(workload, evaluate=watch.evaluate),
        fit_optimizer(loop.num_steps, workload.params),
        dataclasses.replace(loop, num_steps=watch.length, progress=call.progress),
        workdir=workdir,
        mesh=plan.mesh,
        label="fit",
        compile_with=step,
        stop_when=watch.stops,
    )
    taken = int(result.state.step)
    decisions += watch.decisions(taken)
    evaluations, frozen = watch.evaluations, result.state.frozen
    best = evaluations.snapshots.best
    assert best is not None
    params, validation = best.params, evaluations.metrics[best.step]
    if call.preset.snapshots > 1:
        soup = greedy_soup(
            evaluations.snapshots,
            lambda params: dict(evaluate(params, frozen, "validation")),
            lambda: call.clock.left() > 2 * timing.mean(),
        )
        decisions.append(_of_average(soup, evaluations, plan.metric))
        if soup is not None:
            params, validation = soup.params, dict(soup.metrics)
    seconds = result.train_seconds / max(taken, 1)
    return Trained(params, frozen, validation, result, seconds, decisions)


class _Watch:
    """Evaluates a run, keeps its best parameters, and says when it stops.

    Args:
        workload: must have an evaluation.
        plan: the metric that selects the parameters.
        loop: of the run.
        call: limits and folder of the call.
        timing: of evaluations.

    Attributes:
        evaluations: of the run, those before an interruption too.
        length: steps to run; fewer than those of the loop if the interrupted run had
            stopped already.
    """

    def __init__(
        self,
        workload: Workload,
        plan: TrainingPlan,
        loop: LoopConfig,
        call: FitCall,
        timing: "_Timing",
    ) -> None:
        assert workload.evaluate is not None
        self._evaluate, self._timing = workload.evaluate, timing
        self._metric, self._loop = plan.metric, loop
        self._preset, self._clock = call.preset, call.clock
        self._stopping = EarlyStopping(plan.metric, plan.mode, call.preset.patience)
        folder = call.run_folder
        self.evaluations = Evaluations(
            call.preset.snapshots,
            plan.metric,
            plan.mode,
            workload.params,
            None if folder is None else folder / "evaluations",
        )
        self._at = 0 if folder is None else _last_checkpoint(folder)
        ended = self.evaluations.ended
        if ended is not None and ended[0] > self._at:
            # Decided after the last checkpoint, so it is decided again.
            self.evaluations.ended = ended = None
        self.length = ended[0] if ended else loop.num_steps
        self._calls = self._at // loop.eval_every + 1 if self._at else 0
        self._last_call = time.perf_counter()

    def evaluate(
        self, params: PyTree, frozen: PyTree, split: str
    ) -> Mapping[str, float]:
        """The workload's evaluation; it is recorded."""
        with self._timing.evaluation():
            metrics = {
                k: float(v) for k, v in self._evaluate(params, frozen, split).items()
            }
        self._at = min(self._calls * self._loop.eval_every, self._loop.num_steps)
        self._calls += 1
        if not self._at:
            # The first interval excludes all earlier work, such as compilation.
            self._last_call = time.perf_counter()
        self.evaluations.show(self._at, params, metrics)
        return metrics

    def stops(self) -> bool:
        """Whether the run stops, for lack of improvement or of time."""
        now = time.perf_counter()
        interval, self._last_call = now - self._last_call, now
        evaluations, clock, preset = self.evaluations, self._clock, self._preset
        if self._stopping.stops(evaluations.values(until=self._at)):
            best = evaluations.snapshots.best
            evaluations.end(
                self._at,
                f"no better {self._metric} in {preset.patience} evaluations after step "
                f"{0 if best is None else best.step}",
            )
        elif clock.left() < interval + self._timing.tail(preset):
            evaluations.end(
                self._at, f"{clock.spent():.1f} of {clock.limit} s are spent"
            )
        return evaluations.ended is not None

    def decisions(self, taken: int) -> list[Decision]:
        """Where the run stopped early, and which of its steps is best.

        Args:
            taken: steps of the run.
        """
        found = []
        evaluations, metric = self.evaluations, self._metric
        best = evaluations.snapshots.best
        assert best is not None
        if evaluations.ended is not None and taken < self._loop.num_steps:
            found.append(Decision("stopped_at", taken, evaluations.ended[1]))
        followed = evaluations.values(until=taken)
        reason = (
            f"validation {metric} {best.value:.4g}, the best of {len(followed)} "
            f"evaluations in {taken} steps; the last was {followed[-1]:.4g}"
        )
        return [*found, Decision("best_step", best.step, reason)]


def _of_average(soup: Soup | None, evaluations: Evaluations, metric: str) -> Decision:
    """Whether the average of the best parameters is taken, and why."""
    snapshots = evaluations.snapshots
    best = snapshots.best
    assert best is not None
    if soup is None:
        reason = f"averages of the best {snapshots.keep} snapshots are no better"
        return Decision("averaged_steps", [], reason)
    reason = (
        f"their average has a validation {metric} of {soup.metrics[metric]:.4g} and a "
        f"loss of {soup.metrics['loss']:.4g}; the best alone {best.value:.4g} and "
        f"{evaluations.metrics[best.step]['loss']:.4g}"
    )
    return Decision("averaged_steps", list(soup.steps), reason)


class _Timing:
    """Seconds of evaluations; those of the first include compilation."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def evaluation(self) -> Any:
        return _Timed(self._seconds)

    def mean(self) -> float:
        later = self._seconds[1:] or self._seconds
        return float(np.mean(later)) if later else 0.0

    def tail(self, preset: Preset) -> float:
        """Seconds for what follows the run: averaging, tests, ablated modalities."""
        return (6 + (preset.snapshots if preset.snapshots > 1 else 0)) * self.mean()


class _Timed:
    def __init__(self, into: list[float]) -> None:
        self._into = into

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._into.append(time.perf_counter() - self._started)


def _that_fits(
    workload: Workload,
    plan: TrainingPlan,
    call: FitCall,
    step: CachedStep,
    timing: _Timing,
) -> tuple[LoopConfig, list[Decision]]:
    """The loop with as many of its steps as fit in the remaining time."""
    loop, evaluate = plan.loop, workload.evaluate
    preset, clock = call.preset, call.clock
    assert evaluate is not None
    examples = workload.describe()["examples"]["train"]
    if clock.left() <= 0:
        raise ValueError(
            f"time_limit={clock.limit:g} s is too short: reading {examples} samples "
            f"took {clock.spent():.1f} s, and training needs about as long or longer"
        )

    def timed(params: PyTree, frozen: PyTree, split: str) -> Mapping[str, float]:
        with timing.evaluation():
            return evaluate(params, frozen, split)

    short = dataclasses.replace(
        loop,
        num_steps=_TIMED_STEPS,
        eval_every=_TIMED_STEPS,
        log_every=_TIMED_STEPS,
        checkpoint_every=_TIMED_STEPS,
        evaluate_at_start=True,
        progress=False,
    )
    tried = run(
        dataclasses.replace(workload, evaluate=timed),
        fit_optimizer(_TIMED_STEPS, workload.params),
        short,
        mesh=plan.mesh,
        compile_with=step,
    )
    jax.block_until_ready(tried.state)
    # The first batch is read before the timer of the steps starts.
    first = tried.input_seconds / (_TIMED_STEPS - 1)
    seconds = (tried.train_seconds + first) / _TIMED_STEPS
    left = clock.left()
    share = _EVALUATING * left / max(timing.mean(), 1e-9)
    count = min(preset.evaluations, max(_FEWEST_EVALUATIONS, int(share)))
    evaluations = (count + 1) * timing.mean()
    usable = (1 - _RESERVE) * left - evaluations - timing.tail(preset)
    fits = int(usable / seconds)
    a_pass = max(1, examples // loop.batch_size)
    facts = (
        f"a step takes {1000 * seconds:.0f} ms, an evaluation "
        f"{1000 * timing.mean():.0f} ms, and {left:.1f} of {clock.limit:g} s are left"
    )
    if fits < _FEWEST_STEPS:
        spent = clock.spent()
        needed = spent + seconds * a_pass + evaluations + timing.tail(preset)
        raise ValueError(
            f"time_limit={clock.limit:g} s is too short: {spent:.1f} s went into "
            f"reading and compiling, and {facts}, so that {max(fits, 0)} steps fit; "
            f"one pass over {examples} samples needs about {1.2 * needed:.0f} s in all"
        )
    num_steps = min(loop.num_steps, fits)
    if num_steps < loop.num_steps:
        reason = f"{facts}: {num_steps / a_pass:.1f} passes over {examples} samples"
        if num_steps < a_pass:
            reason += "; less than one, so not all samples are seen"
    else:
        reason = f"{facts}: all {loop.num_steps} steps of the plan fit"
    fewer = dataclasses.replace(preset, evaluations=count)
    return loop_of(num_steps, loop.batch_size, fewer, loop.seed), [
        Decision("num_steps_in_time", num_steps, reason)
    ]


def _last_checkpoint(workdir: Path) -> int:
    """The step that a run in a folder resumes from; 0 without a checkpoint."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return 0
    checkpoints = Checkpoints(folder)
    try:
        return max(checkpoints.steps(), default=0)
    finally:
        checkpoints.close()


def fit_optimizer(num_steps: int, params: PyTree) -> Any:
    """The learned optimizer for a run of so many steps.

    Args:
        num_steps: length of the run.
        params: pytree of the trained parameters; their names show whether layers are
            stacked.
    """
    paths = (
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    )
    stacked = STACKED if any(re.search(STACKED, path) for path in paths) else None
    # The length is a value in its state, so that the timed steps and the run share one
    # compiled program.
    return injected_learned(OptimizerConfig(num_steps=num_steps, stacked=stacked))
