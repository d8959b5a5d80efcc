"""Trains within a time limit, and returns the best parameters of one or two runs."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from meta_opt.checkpoints import Checkpoints
from meta_opt.finetuning.early_stopping import EarlyStopping
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.run_result import RunResult
from meta_opt.finetuning.runs import run
from meta_opt.finetuning.step_program import CachedStep
from meta_opt.parallel.placement import to_host
from meta_opt.parallel.processes import check_alike, json_from_first
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.evaluations import Evaluations
from meta_opt.predictor.fitting import FitCall
from meta_opt.predictor.plan import TrainingPlan, loop_of
from meta_opt.predictor.snapshots import Soup, greedy_soup
from meta_opt.predictor.time_limit import (
    FEWEST_STEPS,
    RESERVE,
    Timing,
    fit_optimizer,
    loop_in_time,
)
from meta_opt.types import PyTree, from_config
from meta_opt.workloads.workload import Workload

_SECOND_RUN_FACTOR = 2
"""Length of a second run as a multiple of the best step of the first run."""


class Trained(NamedTuple):
    """The outcome of a training run.

    Attributes:
        params: best trainable parameters, on the host.
        frozen: frozen parameters, on the host.
        validation: metrics of these parameters on validation samples.
        result: result of the run.
        seconds: mean seconds per step.
        decisions: decisions made during training.
        best_step: step with the best validation metric.
    """

    params: PyTree
    frozen: PyTree
    validation: dict[str, float]
    result: RunResult
    seconds: float
    decisions: list[Decision]
    best_step: int


def train(workload: Workload, plan: TrainingPlan, call: FitCall) -> Trained:
    """Trains with the learned optimizer; a second, shorter run follows if necessary.

    With a time limit, a few steps are timed first, and the run has as many steps as
    fit. It stops early when validation no longer improves. The best parameters of the
    run, or the average of the best ones, are returned.

    If validation was best early in the run, the steps were still large at that point of
    the schedule. A second run from the same initial parameters ends near there, and the
    better of the two runs is returned.

    An interrupted call is resumed in its folder, with the same outcome as an
    uninterrupted call.

    Args:
        workload: model, data and loss; must have an evaluation.
        plan: longest run, and the metric that selects the parameters.
        call: limits and folder of the call.

    Raises:
        ValueError: a time limit that is too short for a run.
        Interrupted: on SIGINT or SIGTERM, after saving.
    """
    loop = plan.loop
    decisions: list[Decision] = []
    step, timing = CachedStep(), Timing()
    if call.clock.limit is not None:
        loop, decisions = call.record.decide(
            "length",
            lambda: loop_in_time(workload, plan, call, step, timing),
            dataclasses.asdict,
            functools.partial(from_config, LoopConfig),
        )
    first = _train_once(workload, plan, loop, call, step, timing)
    length, _ = call.record.decide(
        "second_run",
        lambda: (_second_length(first, loop, call, timing), []),
        int,
        int,
    )
    if not length:
        decisions += first.decisions
        return first._replace(frozen=to_host(first.frozen), decisions=decisions)
    folder = call.run_folder
    again = dataclasses.replace(
        call, run_folder=None if folder is None else folder / "second"
    )
    shorter = loop_of(length, loop.batch_size, call.preset, loop.seed)
    second = _train_once(workload, plan, shorter, again, step, timing)
    trained, decision = _better(first, second, plan, loop.num_steps, length)
    decisions += [*trained.decisions, decision]
    return trained._replace(frozen=to_host(trained.frozen), decisions=decisions)


def _train_once(
    workload: Workload,
    plan: TrainingPlan,
    loop: LoopConfig,
    call: FitCall,
    step: CachedStep,
    timing: Timing,
) -> Trained:
    """Runs `meta_opt.finetuning.run` once; returns the best parameters."""
    evaluate = workload.evaluate
    assert evaluate is not None
    if call.run_folder is not None:
        # The run may stop at any evaluation, so each of them has a checkpoint.
        loop = dataclasses.replace(loop, checkpoint_every=loop.eval_every)
    watch = _Watch(workload, plan, loop, call, timing)
    result = run(
        dataclasses.replace(workload, evaluate=watch.evaluate),
        fit_optimizer(loop.num_steps, workload.params, call.preset.weights),
        dataclasses.replace(loop, num_steps=watch.length, progress=call.progress),
        workdir=call.run_folder,
        mesh=plan.mesh,
        label="fit",
        compile_with=step,
        stop_when=watch.stops,
    )
    taken = int(result.state.step)
    decisions = watch.decisions(taken)
    evaluations, frozen = watch.evaluations, result.state.frozen
    best = evaluations.snapshots.best
    assert best is not None
    params, validation = best.params, evaluations.metrics[best.step]

    def evaluated(params: PyTree) -> dict[str, float]:
        found = evaluate(params, frozen, "validation")
        return json_from_first({k: float(v) for k, v in found.items()})

    if call.preset.snapshots > 1:
        soup = greedy_soup(
            evaluations.snapshots,
            evaluated,
            lambda: call.clock.left() > 2 * timing.mean(),
        )
        decisions.append(_of_average(soup, evaluations, plan.metric))
        if soup is not None:
            params, validation = soup.params, dict(soup.metrics)
    seconds = json_from_first(result.train_seconds / max(taken, 1))
    return Trained(params, frozen, validation, result, seconds, decisions, best.step)


def _second_length(
    first: Trained, loop: LoopConfig, call: FitCall, timing: Timing
) -> int:
    """Returns the length of a second run; 0 if none is needed or time is too short."""
    length = max(_SECOND_RUN_FACTOR * first.best_step, FEWEST_STEPS)
    if not 0 < first.best_step <= call.preset.early * loop.num_steps:
        return 0
    if length >= loop.num_steps:
        return 0
    evaluations = (call.preset.evaluations + 1) * timing.mean()
    needed = length * first.seconds + evaluations + timing.tail(call.preset)
    return length if needed < (1 - RESERVE) * call.clock.left() else 0


def _better(
    first: Trained, second: Trained, plan: TrainingPlan, long: int, short: int
) -> tuple[Trained, Decision]:
    """Returns the run with the better validation metric; the lower loss breaks ties."""
    sign = 1 if plan.mode == "min" else -1

    def rank(trained: Trained) -> tuple[float, float]:
        metrics = trained.validation
        return sign * metrics[plan.metric], metrics.get("loss", 0.0)

    taken = second if rank(second) < rank(first) else first
    reason = (
        f"validation was best at step {first.best_step} of {long}, where steps are "
        f"still large; a run of {short} from the same start has {plan.metric} "
        f"{second.validation[plan.metric]:.4g}, the first "
        f"{first.validation[plan.metric]:.4g}: the "
        f"{'second' if taken is second else 'first'} is taken"
    )
    compiling = first.result.compile_seconds + second.result.compile_seconds
    result = dataclasses.replace(taken.result, compile_seconds=compiling)
    return taken._replace(result=result), Decision("second_run", short, reason)


class _Watch:
    """Evaluates a run, keeps its best parameters, and decides when it stops.

    Args:
        workload: model, data and loss; must have an evaluation.
        plan: training plan with the metric that selects the parameters.
        loop: settings of the run.
        call: limits and folder of the call.
        timing: durations of evaluations.

    Attributes:
        evaluations: evaluations of the run, including those before an interruption.
        length: number of steps to run; below the loop's if the interrupted run had
            stopped early.
    """

    def __init__(
        self,
        workload: Workload,
        plan: TrainingPlan,
        loop: LoopConfig,
        call: FitCall,
        timing: Timing,
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
            # The decision to stop is newer than the last checkpoint: make it again.
            self.evaluations.ended = ended = None
        self.length = ended[0] if ended else loop.num_steps
        # No process may write before all have read.
        seen = [self._at, ended, sorted(self.evaluations.metrics)]
        check_alike(seen, f"files in {folder}")
        self._calls = self._at // loop.eval_every + 1 if self._at else 0
        self._last_call = time.perf_counter()

    def evaluate(
        self, params: PyTree, frozen: PyTree, split: str
    ) -> Mapping[str, float]:
        """Evaluates the parameters and records the metrics."""
        with self._timing.evaluation():
            found = {
                k: float(v) for k, v in self._evaluate(params, frozen, split).items()
            }
        metrics = json_from_first(found)
        self._at = min(self._calls * self._loop.eval_every, self._loop.num_steps)
        self._calls += 1
        if not self._at:
            # The first interval excludes all earlier work, such as compilation.
            self._last_call = time.perf_counter()
        self.evaluations.show(self._at, params, metrics)
        return metrics

    def stops(self) -> bool:
        """Returns whether the run stops, for lack of improvement or time."""
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
        elif clock.limit is not None and clock.left() < (
            json_from_first(interval) + self._timing.tail(preset)
        ):
            evaluations.end(
                self._at, f"{clock.spent():.1f} of {clock.limit} s are spent"
            )
        return evaluations.ended is not None

    def decisions(self, taken: int) -> list[Decision]:
        """Returns decisions about early stopping and the best step.

        Args:
            taken: number of steps of the run.
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
    """Returns the decision whether to use the average of the best parameters."""
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


def _last_checkpoint(workdir: Path) -> int:
    """Returns the step that a run in a folder resumes from; 0 without a checkpoint."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return 0
    checkpoints = Checkpoints(folder)
    try:
        return max(checkpoints.steps(), default=0)
    finally:
        checkpoints.close()
