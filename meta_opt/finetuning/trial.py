"""Repeated runs of one workload that share data and programs, for searches."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from meta_opt.finetuning.early_stopping import EarlyStopping
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.modality_groups import with_groups
from meta_opt.finetuning.planning import peak_bytes
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.runs import run, run_objective
from meta_opt.finetuning.state import init_state
from meta_opt.finetuning.step_program import CachedStep, compile_step
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.parallel.mesh import batch_sharding, local_rows, make_mesh
from meta_opt.parallel.placement import place
from meta_opt.types import from_config, near_match
from meta_opt.workloads.workload import Workload

Report = Callable[[int, float], None]
"""``report(step, value)`` of a validation metric; may raise to end the run."""

MakeOptimizer = Callable[[OptimizerConfig], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation during a run.

    Attributes:
        step: number of optimizer updates so far.
        train_loss: mean training loss since the previous evaluation.
        validation: metrics on validation data.
    """

    step: int
    train_loss: float
    validation: dict[str, float]


@dataclasses.dataclass(frozen=True)
class TrialRun:
    """The outcome of one run.

    Attributes:
        seed: random seed of initialisation and batches.
        num_steps: length of the run.
        evaluations: evaluations in order; the last one is after the final step.
        test: metrics of the final parameters; with early stopping, of the parameters at
            the best evaluation.
        seconds: time of the steps in seconds, without compilation and evaluation.
        peak_bytes: peak memory of the compiled step, from the compiler's analysis.
        optimizer_bytes: bytes of the optimizer's state.
        trainable: number of trainable parameters.
        decisions: the controller's decisions at each evaluation; see
            `meta_opt.optimizers.decisions.read_decisions`.
    """

    seed: int
    num_steps: int
    evaluations: tuple[Evaluation, ...]
    test: dict[str, float]
    seconds: float
    peak_bytes: int
    optimizer_bytes: int
    trainable: int
    decisions: tuple[dict[str, float], ...] = ()


class Trial:
    """Runs a workload with any optimizer, seed and length.

    Args:
        base: configuration of the runs. A validation metric is reported every
            ``loop.eval_every`` steps; ``loop.seed`` is the default seed of trials.
        make_tx: builds an optimizer. If its settings are values of its state
            (`meta_opt.tuning.injected`), all trials share one compiled step.
        test: whether to evaluate the test split.
        metric: the validation metric to report.
        early_stopping: early stopping of runs; None for none.

    Attributes:
        base: configuration of the runs.
        workload: the workload, built with the seed of ``base``.
    """

    def __init__(
        self,
        base: RunConfig,
        make_tx: MakeOptimizer = make_optimizer,
        test: bool = True,
        metric: str = "loss",
        early_stopping: EarlyStopping | None = None,
    ) -> None:
        self.base, self._make_tx, self._test = base, make_tx, test
        self._metric, self._stopping = metric, early_stopping
        self._mesh = make_mesh(base.mesh)
        self.workload: Workload = base.workload.build(base.loop.seed, self._mesh)
        self._steps: dict[Any, CachedStep] = {}

    def optimizer(self, settings: Mapping[str, Any]) -> OptimizerConfig:
        """Returns the optimizer of ``base`` with changed settings.

        Raises:
            ValueError: the optimizer does not have a setting.
        """
        given = dataclasses.asdict(self.base.optimizer)
        return from_config(OptimizerConfig, {**given, **settings})

    def stepper(self, optimizer: OptimizerConfig) -> Callable[[], Any]:
        """Returns a function that takes one step on a fixed batch, for timing."""
        base, workload = self.base, self._seeded(0)
        tx = self._make_tx(with_groups(optimizer, workload))
        loop = dataclasses.replace(base.loop, num_steps=optimizer.num_steps)
        objective = run_objective(
            workload, loop, base.meta_loss, base.privacy, base.balancing
        )
        state = init_state(
            workload.params,
            workload.frozen,
            tx,
            self._mesh,
            workload.rules,
            init_objective=objective.init,
        )
        rows = local_rows(self._mesh, base.loop.batch_size)
        batch = next(workload.train_batches(base.loop.batch_size, 0, rows))
        batch = place(batch, batch_sharding(self._mesh))
        compiled, _ = compile_step(loop, objective, tx, state, batch, self._mesh)

        def step() -> Any:
            nonlocal state
            state, metrics = compiled(state, batch)
            return metrics

        return step

    def __call__(
        self,
        optimizer: OptimizerConfig,
        seed: int | None = None,
        report: Report | None = None,
        loop: LoopConfig | None = None,
    ) -> TrialRun:
        """Executes a run.

        Args:
            optimizer: optimizer of the run, whose length is the length of the run.
            seed: random seed of initialisation and batches; None for that of ``base``.
            report: callback at every evaluation except that of the last step.
            loop: replaces the loop of ``base``, for example with another batch size.

        Raises:
            ValueError: the evaluation does not return the metric.
        """
        base = self.base
        loop = base.loop if loop is None else loop
        seed = loop.seed if seed is None else seed
        loop = dataclasses.replace(
            loop,
            num_steps=optimizer.num_steps,
            seed=seed,
            log_every=loop.eval_every,
            # The last evaluation is returned as the trial's value, not reported.
            evaluate_at_start=False,
            progress=False,
        )
        workload = self._seeded(seed)
        evaluate = workload.evaluate
        assert evaluate is not None
        stopping = self._stopping
        seen: list[dict[str, float]] = []
        followed: list[float] = []  # by early stopping
        checked = not loop.evaluates_first
        kept = None

        def validate(params: Any, frozen: Any, split: str) -> dict[str, float]:
            nonlocal checked, kept
            metrics = dict(evaluate(params, frozen, split))
            if not checked:  # the evaluation before the first step
                checked = True
                return metrics
            seen.append(metrics)
            if stopping is not None:
                followed.append(_named(metrics, stopping.metric))
                if self._test and stopping.best(followed) == len(followed) - 1:
                    # Copies, since a step donates its parameters.
                    kept = jax.tree.map(lambda x: x.copy(), params)
            step = loop.eval_every * len(seen)
            if report is not None and step < loop.num_steps:
                report(step, _named(metrics, self._metric))
            return metrics

        # The length is a compile-time constant for baselines, and so is the noise of a
        # private run, which may depend on the length.
        constant_length = optimizer.name != "learned" or base.privacy is not None
        key = (
            optimizer.name,
            constant_length and optimizer.num_steps,
            loop.batch_size,
        )
        shared = self._steps.setdefault(key, CachedStep())
        constant = self._make_tx is make_optimizer
        result = run(
            dataclasses.replace(workload, evaluate=validate),
            self._make_tx(with_groups(optimizer, workload)),
            loop,
            meta_loss=base.meta_loss,
            balancing=base.balancing,
            privacy=base.privacy,
            mesh=base.mesh,
            # The run may donate these arrays if the next run can recreate them.
            donate=workload.reseeded is not None,
            compile_with=compile_step if constant else shared,
            stop_when=(lambda: stopping.stops(followed)) if stopping else None,
        )
        trained = result.state.params if kept is None else kept, result.state.frozen
        logged = [r for r in result.history if "train/loss" in r]
        decides = optimizer.name == "learned"
        return TrialRun(
            seed=seed,
            num_steps=loop.num_steps,
            evaluations=tuple(
                Evaluation(record["step"], record["train/loss"], metrics)
                for record, metrics in zip(logged, seen, strict=True)
            ),
            test=dict(evaluate(*trained, "test")) if self._test else {},
            seconds=result.train_seconds,
            peak_bytes=0 if shared.compiled is None else peak_bytes(shared.compiled),
            optimizer_bytes=result.optimizer_bytes,
            trainable=result.trainable,
            decisions=tuple(map(_decisions, logged)) if decides else (),
        )

    def _seeded(self, seed: int) -> Workload:
        if self.workload.reseeded is None:
            return self.workload
        return self.workload.reseeded(seed)


def _named(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise ValueError(
            f"the evaluation has no metric {name!r}{near_match(name, metrics)} "
            f"(metrics: {', '.join(metrics)})"
        )
    return metrics[name]


def _decisions(record: Mapping[str, Any]) -> dict[str, float]:
    """Extracts the controller's decisions from a record of a run's metrics."""
    prefix = "optimizer/"
    return {
        k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)
    }
