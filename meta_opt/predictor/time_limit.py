"""Finds the number of steps that fit in a time limit."""

import dataclasses
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.runs import run
from meta_opt.finetuning.step_program import CachedStep
from meta_opt.models.towers import STACKED
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.parallel.processes import json_from_first
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.fitting import FitCall
from meta_opt.predictor.plan import TrainingPlan, loop_of
from meta_opt.predictor.presets import Preset
from meta_opt.tree_paths import leaves_by_path
from meta_opt.tuning.injected import injected_learned
from meta_opt.types import PyTree
from meta_opt.workloads.workload import Workload

FEWEST_STEPS = 20
RESERVE = 0.06
"""Fraction of the remaining time that is kept in reserve, since step times vary."""
_TIMED_STEPS = 6
_EVALUATING, _FEWEST_EVALUATIONS = 0.25, 4
"""Maximum fraction of the remaining time for evaluations, and their minimum number."""


class Timing:
    """Durations of evaluations in seconds; the first one includes compilation.

    Several processes use the durations of the first one; every process must make the
    same calls.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def evaluation(self) -> Any:
        """Returns a context manager that times an evaluation."""
        return _Timed(self._seconds)

    def mean(self) -> float:
        """Returns the mean seconds of an evaluation, without the first if possible."""
        later = self._seconds[1:] or self._seconds
        return json_from_first(float(np.mean(later)) if later else 0.0)

    def tail(self, preset: Preset) -> float:
        """Estimates the seconds after the run: averaging, tests, ablated modalities."""
        return (6 + (preset.snapshots if preset.snapshots > 1 else 0)) * self.mean()


class _Timed:
    def __init__(self, into: list[float]) -> None:
        self._into = into

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._into.append(time.perf_counter() - self._started)


def loop_in_time(
    workload: Workload,
    plan: TrainingPlan,
    call: FitCall,
    step: CachedStep,
    timing: Timing,
) -> tuple[LoopConfig, list[Decision]]:
    """Times a few steps, and finds the longest loop that fits in the remaining time.

    Args:
        workload: model, data and loss; must have an evaluation.
        plan: training plan with the longest loop.
        call: time limit and preset of the call.
        step: compiled training step, which the run reuses.
        timing: durations of evaluations.

    Returns:
        The loop, and the decision about it.

    Raises:
        ValueError: fewer steps fit than a run needs; the message has the seconds.
    """
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
        fit_optimizer(_TIMED_STEPS, workload.params, preset.weights),
        short,
        mesh=plan.mesh,
        compile_with=step,
    )
    jax.block_until_ready(tried.state)
    # The first batch is read before the timer of the steps starts.
    first = tried.input_seconds / (_TIMED_STEPS - 1)
    seconds = json_from_first((tried.train_seconds + first) / _TIMED_STEPS)
    left = clock.left()
    share = _EVALUATING * left / max(timing.mean(), 1e-9)
    count = min(preset.evaluations, max(_FEWEST_EVALUATIONS, int(share)))
    evaluations = (count + 1) * timing.mean()
    usable = (1 - RESERVE) * left - evaluations - timing.tail(preset)
    fits = int(usable / seconds)
    a_pass = max(1, examples // loop.batch_size)
    facts = (
        f"a step takes {1000 * seconds:.0f} ms, an evaluation "
        f"{1000 * timing.mean():.0f} ms, and {left:.1f} of {clock.limit:g} s are left"
    )
    if fits < FEWEST_STEPS:
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


def fit_optimizer(num_steps: int, params: PyTree, weights: str) -> Any:
    """Returns the learned optimizer for a run of ``num_steps`` steps.

    Args:
        num_steps: length of the run.
        params: pytree of trained parameters; their names show whether layers are
            stacked.
        weights: name or path of the optimizer's weights.
    """
    paths = leaves_by_path(params)
    stacked = STACKED if any(re.search(STACKED, path) for path in paths) else None
    # The number of steps is stored in the optimizer state, so that the timed steps and
    # the run share one compiled program.
    return injected_learned(
        OptimizerConfig(num_steps=num_steps, stacked=stacked, weights=weights)
    )
