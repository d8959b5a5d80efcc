"""Training a vision-text model: from a configuration to a finished run.

Pre-training, full fine-tuning and LoRA, of contrastive and of generative models, differ
in their configuration only.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from meta_opt.data.pipeline import PipelineConfig, make_iterator
from meta_opt.data.records import MemorySource
from meta_opt.finetuning import export
from meta_opt.finetuning.data_source import CountedBatches, DataConfig, Splits
from meta_opt.finetuning.export import ExportConfig
from meta_opt.finetuning.loop import LoopConfig, RunResult, run
from meta_opt.finetuning.model_source import (
    Model,
    ModelConfig,
    Preprocessing,
    architecture,
    build_model,
    kind_of,
    read_preprocessing,
)
from meta_opt.finetuning.parts import Score, make_evaluate
from meta_opt.finetuning.step import LossFn
from meta_opt.losses.captioning import captioning_loss
from meta_opt.losses.contrastive import LOSSES
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.parallel.mesh import (
    MeshConfig,
    check_batch_size,
    local_rows,
    make_mesh,
)
from meta_opt.parallel.placement import to_host
from meta_opt.types import Batch, PyTree, write_atomic

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run. See the parts.

    Attributes:
        loop: length and what is logged, evaluated and saved when.
        optimizer: the optimizer.
        model: the model.
        data: training, validation and test data.
        pipeline: batches and augmentation.
        mesh: devices.
        export: where the final weights are written to, and as what.
    """

    loop: LoopConfig
    optimizer: OptimizerConfig
    model: ModelConfig
    data: DataConfig
    pipeline: PipelineConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        """Checks that what the parts share is the same, and that they fit."""
        for name, one, two in (
            ("num_steps", self.loop.num_steps, self.optimizer.num_steps),
            ("batch_size", self.loop.batch_size, self.pipeline.batch_size),
        ):
            if one != two:
                raise ValueError(
                    f"loop.{name}={one} and the same setting elsewhere, {two}, differ"
                )
        export.check_settings(self.export, self.model)


def read_preprocessing_of(config: RunConfig) -> Preprocessing:
    """How the data of a run are prepared; see `read_preprocessing`."""
    return read_preprocessing(
        config.model,
        config.pipeline.text_length,
        config.pipeline.prompt_length,
        config.data.prompt,
    )


class Finished(NamedTuple):
    """What a finished run gives.

    Attributes:
        result: the run.
        test: metrics of the final parameters on the test split.
        unreadable: why pictures of the user's were skipped, by name.
    """

    result: RunResult
    test: dict[str, float]
    unreadable: dict[str, str]


def make_loss(model: Model, loss: str = "clip") -> LossFn:
    """Returns the loss of a batch as a function of the model's parts.

    Args:
        model: its structure is used, its arrays are not.
        loss: ``clip`` or ``siglip``; of a generative model ``captioning``.
    """

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        outputs = model.merge(params, frozen)(batch)
        if loss == "captioning":
            return captioning_loss(*outputs), {}
        return LOSSES[loss](*outputs), {"logit_scale": outputs[2]}

    return loss_fn


def run_vision_text(
    config: RunConfig,
    score_on: Callable[[MemorySource], Score],
    workdir: str | Path | None = None,
) -> Finished:
    """Trains and evaluates; resumes where ``workdir`` has a checkpoint.

    Several processes call this alike; process 0 writes the results.

    Args:
        config: the run.
        score_on: builds the evaluation on a split, whose images have the model's size.
        workdir: for logs and checkpoints; gets ``result.json`` too. None for neither.

    Returns:
        The run, the metrics on the test split, and what was skipped.

    Raises:
        Interrupted: on SIGINT or SIGTERM, with all saved.
        ValueError: see :func:`meta_opt.finetuning.loop.run`, `build_model` and
            `Splits`.
    """
    # What is quickly found to be wrong comes first; a large model takes minutes.
    mesh = make_mesh(config.mesh)
    check_batch_size(mesh, config.loop.batch_size, config.loop.accumulation_steps)
    reading = read_preprocessing_of(config)
    splits = Splits(config.data, reading.fit)
    pipeline = dataclasses.replace(config.pipeline, text_length=reading.text_length)
    source = splits.train()
    rows = local_rows(mesh, config.loop.batch_size)
    batches = CountedBatches(
        make_iterator(source, reading.tokenizer, pipeline, rows, reading.prompts),
        splits.unreadable,
        len(source),
    )
    scores = {
        split: score_on(splits.held_out(split)) for split in ("validation", "test")
    }
    model = build_model(config.model, reading, mesh)
    export.check_model(config.export, model.merge(model.params, model.frozen))
    settings = dataclasses.asdict(config)
    # A finished run may be asked for again, to write it in another format.
    del settings["export"]
    result = run(
        config.loop,
        params=model.params,
        frozen=model.frozen,
        loss_fn=make_loss(model, config.model.loss),
        tx=make_optimizer(config.optimizer),
        batches=batches,
        evaluate=make_evaluate(model, scores["validation"]),
        mesh=config.mesh,
        rules=kind_of(architecture(config.model)).rules,
        workdir=workdir,
        resolved_config=settings,
        label=config.optimizer.name,
        take_over=True,
    )
    parts = result.state.params, result.state.frozen
    test = dict(make_evaluate(model, scores["test"])(*parts))
    finished = Finished(result, test, dict(splits.unreadable.reasons))
    first = jax.process_index() == 0
    if workdir is not None and first:
        _write_result(Path(workdir), finished)
    if config.export.path:
        # A process alone sees all arrays; of several each has a part.
        trained = model.merge(*(parts if jax.process_count() == 1 else to_host(parts)))
        if first:
            export.write(config.export, trained, config.model)
    return finished


def _write_result(workdir: Path, finished: Finished) -> None:
    result = finished.result
    summary: dict[str, Any] = {
        "test": finished.test,
        "validation": result.last_evaluation,
        **result.figures(),
        "unreadable": len(finished.unreadable),
        "unreadable_pictures": finished.unreadable,
    }
    with write_atomic(workdir / "result.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
