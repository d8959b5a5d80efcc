"""Times of a case's programs, and of loops of steps with meta-steps."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import optax
from jax.sharding import Mesh

from meta_opt.finetuning.meta_step import MetaSteps, make_meta_step
from meta_opt.finetuning.objective import make_objective
from meta_opt.finetuning.state import TrainState, init_state
from meta_opt.parallel.mesh import batch_sharding, local_rows
from meta_opt.parallel.placement import place
from meta_opt.studies.meltr_throughput.cases import Case
from meta_opt.studies.meltr_throughput.programs import STEPS, Programs
from meta_opt.types import PyTree
from meta_opt.workloads.workload import Workload

Timer: TypeAlias = Callable[[dict[str, Callable[[], Any]], int], Mapping[str, float]]
"""``(functions by name, rounds) -> median milliseconds by name``, calling the functions
in turns; such as `experiments.benchmarks.timing.medians`."""


def measure_times(
    case: Case,
    workload: Workload,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    programs: Programs,
    timer: Timer,
) -> dict[str, Any]:
    """Times the programs of a case in turns, and loops of steps with meta-steps.

    Args:
        case: the case, with ``rounds`` and ``intervals``.
        workload: workload with concrete arrays.
        tx: the optimizer.
        mesh: mesh that the programs are compiled for.
        programs: the compiled programs.
        timer: measures times.

    Returns:
        ``milliseconds`` by program; for a case with intervals also ``loops``,
        milliseconds of a step in the loop of ``equal`` and of each K.
    """
    rows = local_rows(mesh, case.batch_size)
    batch, meta_batch = (
        place(
            next(workload.train_batches(size, 0, local_rows(mesh, size))),
            batch_sharding(mesh),
        )
        for size in (case.batch_size, case.meta_batch_size)
    )
    states: dict[str, TrainState] = {
        name: init_state(
            *(workload.params, workload.frozen, tx, mesh, workload.rules),
            init_objective=programs.objectives[name].init,
        )
        for name in STEPS
    }

    def step(name: str, batch: PyTree = batch) -> Any:
        states[name], metrics = programs.compiled[name](states[name], batch)
        return metrics

    runs: dict[str, Callable[[], Any]] = {
        name: functools.partial(step, name) for name in STEPS
    }
    of_primary: tuple[Any, ...] = ()
    if "meta_primary" in programs.compiled:

        def primary() -> Any:
            return programs.compiled["meta_primary"](states["meltr"], meta_batch)

        runs["meta_primary"], of_primary = primary, primary()

    def finish() -> Any:
        args = (states["meltr"], *of_primary, meta_batch)
        return programs.compiled["meta_finish"](*args)

    runs["meta_finish"] = finish
    found: dict[str, Any] = {"milliseconds": dict(timer(runs, case.rounds))}
    if case.intervals:
        loops = {str(k): _loop(case, k, workload, tx, mesh, states) for k in
                 case.intervals}  # fmt: skip
        steps = _common_length(case.intervals)

        def equal() -> Any:
            batches = workload.train_batches(case.batch_size, 0, rows)
            for _ in range(steps):
                last = step("equal", place(next(batches), batch_sharding(mesh)))
            return last

        def meltr(meta_steps: MetaSteps) -> Any:
            batches = workload.train_batches(case.batch_size, 0, rows)
            for number in range(1, steps + 1):
                step("meltr", place(next(batches), batch_sharding(mesh)))
                states["meltr"] = meta_steps.after(number, states["meltr"])
            return states["meltr"]

        timed = {k: functools.partial(meltr, loop) for k, loop in loops.items()}
        whole = timer({"equal": equal, **timed}, max(case.rounds // 2, 1))
        found["loops"] = {k: x / steps for k, x in whole.items()}
    return found


def _common_length(intervals: Sequence[int]) -> int:
    """Returns the least common multiple of the intervals.

    A loop of this many steps ends with a meta-step for every interval.

    >>> _common_length((3, 10))
    30
    """
    return int(np.lcm.reduce(np.asarray(intervals)))


def _loop(
    case: Case,
    interval: int,
    workload: Workload,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    states: Mapping[str, TrainState],
) -> MetaSteps:
    """Builds the meta-steps of a training run."""
    config = dataclasses.replace(case.meta_loss("meltr"), interval=interval)
    objective = make_objective(workload, config)
    size = case.meta_batch_size
    rows = local_rows(mesh, size)
    assert workload.meta_batches is not None
    found = MetaSteps(
        make_meta_step(workload, objective, config, tx),
        interval,
        functools.partial(workload.meta_batches, size, 0, rows),
        len(rows),
        size,
        mesh,
    )
    found.compile(states["meltr"])
    return found
