"""Many runs of one multimodal task, for searches and tables: what is alike is kept."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import nnx

from meta_opt.data.array_batches import array_batches
from meta_opt.finetuning.loop import run
from meta_opt.finetuning.multimodal import (
    MultimodalRunConfig,
    ScoreOn,
    make_multimodal_loss,
)
from meta_opt.finetuning.parts import make_evaluate
from meta_opt.finetuning.planning import peak_bytes
from meta_opt.finetuning.state import init_state
from meta_opt.finetuning.step_program import KeptStep, compile_step
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.parallel.mesh import batch_sharding, make_mesh
from meta_opt.parallel.placement import place
from meta_opt.tasks.multimodal_inputs import read_inputs
from meta_opt.tasks.multimodal_model import Parts, maker, split_parts
from meta_opt.tasks.task import count_of

Report = Callable[[int, float], None]
"""``report(step, validation_loss)``; may raise to end the run."""

MakeOptimizer = Callable[[OptimizerConfig], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """What is known after an epoch.

    Attributes:
        epoch: passes over the training examples; not whole at the end of a short run.
        train_loss: mean over the epoch.
        validation: metrics.
    """

    epoch: float
    train_loss: float
    validation: dict[str, float]


@dataclasses.dataclass(frozen=True)
class TrialRun:
    """One run from beginning to end.

    Attributes:
        seed: of initialisation and batches.
        num_steps: length.
        epochs: in order.
        test: metrics of the final parameters.
        seconds: in steps; without compilation and evaluation.
        peak_bytes: of the compiled step, by the compiler's analysis.
        optimizer_bytes: of its state.
        trainable: number of parameters.
        decisions: the controller's, by epoch; see
            `meta_opt.optimizers.decisions.read_decisions`.
    """

    seed: int
    num_steps: int
    epochs: tuple[EpochRecord, ...]
    test: dict[str, float]
    seconds: float
    peak_bytes: int
    optimizer_bytes: int
    trainable: int
    decisions: tuple[dict[str, float], ...] = ()


class MultimodalTrial:
    """A task, a model and what trains of it; optimizers, seeds and lengths vary.

    Attributes:
        steps_per_epoch: of the batch size.
        examples: to train on.
    """

    def __init__(
        self, base: MultimodalRunConfig, score_on: ScoreOn, make_tx: MakeOptimizer
    ) -> None:
        """Opens the data.

        Args:
            base: the run; of its optimizer only the pattern of stacked parameters and
                the groups are read.
            score_on: builds the evaluation on a split.
            make_tx: builds an optimizer whose settings live in its state.
        """
        self._base, self._make_tx = base, make_tx
        inputs = read_inputs(base.inputs)
        self._kind = inputs.kind
        self._train = inputs.splits["train"]
        self.examples = count_of(self._train)
        self.steps_per_epoch = self.examples // base.loop.batch_size
        self._create = nnx.jit(maker(base.model, inputs))
        self._scores = {s: score_on(inputs, s) for s in ("validation", "test")}
        self._steps: dict[Any, KeptStep] = {}

    def _parts(self, seed: int) -> Parts:
        model = self._create(jax.random.key(seed))
        return split_parts(model, self._base.model.trainable)

    def stepper(self, optimizer: OptimizerConfig) -> Callable[[], Any]:
        """A call that takes one step, always of the same batch, for timing."""
        base, parts = self._base, self._parts(0)
        mesh, tx = make_mesh(base.mesh), self._make_tx(optimizer)
        state = init_state(parts.params, parts.frozen, tx, mesh)
        batch = next(array_batches(self._train, base.loop.batch_size))
        batch = place(batch, batch_sharding(mesh))
        loss_fn = make_multimodal_loss(parts, self._kind)
        loop = dataclasses.replace(base.loop, num_steps=optimizer.num_steps)
        compiled, _ = compile_step(loop, loss_fn, tx, state, batch, mesh)

        def step() -> Any:
            nonlocal state
            state, metrics = compiled(state, batch)
            return metrics

        return step

    def __call__(
        self,
        optimizer: OptimizerConfig,
        seed: int,
        report: Report | None = None,
    ) -> TrialRun:
        """Runs.

        Args:
            optimizer: its length is that of the run.
            seed: of initialisation and batches.
            report: called after every epoch but the last.
        """
        base, parts = self._base, self._parts(seed)
        loop = dataclasses.replace(
            base.loop,
            num_steps=optimizer.num_steps,
            seed=seed,
            eval_every=self.steps_per_epoch,
            log_every=self.steps_per_epoch,
            evaluate_at_start=False,
            progress=False,
        )
        validate = make_evaluate(parts, self._scores["validation"])
        seen: list[dict[str, float]] = []

        def evaluate(params: Any, frozen: Any) -> dict[str, float]:
            seen.append(dict(validate(params, frozen)))
            step = self.steps_per_epoch * len(seen)
            if report is not None and step < loop.num_steps:
                report(step, seen[-1]["loss"])
            return seen[-1]

        # A baseline's length is a constant of its program.
        key = optimizer.name, optimizer.name != "learned" and optimizer.num_steps
        kept = self._steps.setdefault(key, KeptStep())
        result = run(
            loop,
            params=parts.params,
            frozen=parts.frozen,
            loss_fn=make_multimodal_loss(parts, self._kind),
            tx=self._make_tx(optimizer),
            batches=array_batches(self._train, loop.batch_size, seed),
            evaluate=evaluate,
            mesh=base.mesh,
            take_over=True,
            compile_with=kept,
        )
        trained = parts.merge(result.state.params, result.state.frozen)
        logged = [r for r in result.history if "train/loss" in r]
        decides = optimizer.name == "learned"
        return TrialRun(
            seed=seed,
            num_steps=loop.num_steps,
            epochs=tuple(
                EpochRecord(
                    record["step"] / self.steps_per_epoch, record["train/loss"], metrics
                )
                for record, metrics in zip(logged, seen, strict=True)
            ),
            test=dict(self._scores["test"](trained)),
            seconds=result.train_seconds,
            peak_bytes=peak_bytes(kept.compiled),
            optimizer_bytes=result.optimizer_bytes,
            trainable=result.trainable,
            decisions=tuple(map(_decisions, logged)) if decides else (),
        )


def _decisions(record: Mapping[str, Any]) -> dict[str, float]:
    """What a record of a run's metrics says of the controller."""
    prefix = "optimizer/"
    return {
        k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)
    }
