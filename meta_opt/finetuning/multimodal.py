"""Training a multimodal model on a task, from configuration to result.

The Meta Optimizer framework's run (Muhajab et al.): inputs, fusion, the adaptive
optimizer with a group for each modality, and the feedback that the loop gives it.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from meta_opt.data.array_batches import array_batches
from meta_opt.finetuning.loop import LoopConfig, RunResult, run
from meta_opt.finetuning.parts import Score, make_evaluate
from meta_opt.finetuning.step import LossFn
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.parallel.mesh import MeshConfig, check_batch_size, local_rows, make_mesh
from meta_opt.parallel.sharding import FSDP_RULES
from meta_opt.tasks.multimodal_inputs import Inputs, InputsConfig, read_inputs
from meta_opt.tasks.multimodal_model import (
    MultimodalConfig,
    Parts,
    build_multimodal,
    multimodal_loss,
)
from meta_opt.types import PyTree, write_atomic


@dataclasses.dataclass(frozen=True)
class MultimodalRunConfig:
    """A whole run. See the parts.

    Attributes:
        loop: length and what is logged, evaluated and saved when.
        optimizer: the optimizer.
        inputs: the task and its samples.
        model: the model.
        mesh: devices.
    """

    loop: LoopConfig
    optimizer: OptimizerConfig
    inputs: InputsConfig
    model: MultimodalConfig = dataclasses.field(default_factory=MultimodalConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        """Checks that run and optimizer have one length."""
        if self.loop.num_steps != self.optimizer.num_steps:
            raise ValueError(
                f"loop.num_steps={self.loop.num_steps} and optimizer.num_steps="
                f"{self.optimizer.num_steps} differ"
            )


def make_multimodal_loss(parts: Parts, kind: str) -> LossFn:
    """`multimodal_loss` as a function of the model's arrays.

    Args:
        parts: its structure is used, its arrays are not.
        kind: of the task, one of `meta_opt.data.samples.KINDS`.
    """

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: dict[str, Any], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del rng
        model = parts.merge(params, frozen)
        loss, error = multimodal_loss(model, batch, kind)
        return loss, {"error": error}

    return loss_fn


ScoreOn = Callable[[Inputs, str], Score]
"""``(inputs, split) -> (model -> metrics)``."""


class MultimodalFinished(NamedTuple):
    """What a finished run gives.

    Attributes:
        result: the run.
        test: metrics of the final parameters on the test split.
        missing: by split and modality, how many samples lack it.
        skipped: by split, how many could not be read.
    """

    result: RunResult
    test: dict[str, float]
    missing: dict[str, dict[str, int]]
    skipped: dict[str, int]


def run_multimodal(
    config: MultimodalRunConfig, score_on: ScoreOn, workdir: str | Path | None = None
) -> MultimodalFinished:
    """Trains and evaluates; resumes where ``workdir`` has a checkpoint.

    Args:
        config: the run.
        score_on: builds the evaluation on a split.
        workdir: for logs and checkpoints; gets ``result.json`` too. None for neither.

    Raises:
        Interrupted: on SIGINT or SIGTERM, with all saved.
        ValueError: see :func:`meta_opt.finetuning.loop.run`, `read_inputs` and
            `build_multimodal`.
    """
    mesh = make_mesh(config.mesh)
    check_batch_size(mesh, config.loop.batch_size, config.loop.accumulation_steps)
    inputs = read_inputs(config.inputs)
    train = inputs.splits["train"]
    batches = array_batches(
        train,
        config.loop.batch_size,
        config.loop.seed,
        local_rows(mesh, config.loop.batch_size),
    )
    parts = build_multimodal(config.model, inputs)
    result = run(
        config.loop,
        params=parts.params,
        frozen=parts.frozen,
        loss_fn=make_multimodal_loss(parts, inputs.kind),
        tx=make_optimizer(config.optimizer),
        batches=batches,
        evaluate=make_evaluate(parts, score_on(inputs, "validation")),
        mesh=config.mesh,
        rules=FSDP_RULES,
        workdir=workdir,
        resolved_config=dataclasses.asdict(config),
        label=config.optimizer.name,
        take_over=True,
    )
    trained = parts.merge(result.state.params, result.state.frozen)
    test = dict(score_on(inputs, "test")(trained))
    finished = MultimodalFinished(result, test, inputs.missing, inputs.skipped)
    if workdir is not None and jax.process_index() == 0:
        summary = {
            "test": test,
            "validation": result.last_evaluation,
            "missing": inputs.missing,
            "skipped": inputs.skipped,
            **result.figures(),
        }
        with write_atomic(Path(workdir) / "result.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    return finished
