"""Contrastive training of a vision-text model: from a configuration to a finished run.

Pre-training, full fine-tuning and LoRA differ in their configuration only.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
from flax import nnx

from meta_opt.data.clipart import bundled_clipart
from meta_opt.data.pipeline import PipelineConfig, make_iterator
from meta_opt.data.records import MemorySource
from meta_opt.data.tfds_sources import tfds_source
from meta_opt.data.tokenizer import load_tokenizer
from meta_opt.finetuning.loop import Evaluate, LoopConfig, RunResult, run
from meta_opt.finetuning.step import LossFn
from meta_opt.losses.contrastive import LOSSES
from meta_opt.models import pretrained
from meta_opt.models.lora import LoRAConfig, LoRAParam, add_lora, merge_lora
from meta_opt.models.vision_text import VisionText, named_config, parameter_count
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.parallel.mesh import MeshConfig, local_rows, make_mesh
from meta_opt.parallel.placement import to_host
from meta_opt.parallel.sharding import VISION_TEXT_RULES
from meta_opt.types import Batch, PyTree, near_match, write_atomic

_log = logging.getLogger(__name__)


Score: TypeAlias = Callable[[VisionText], Mapping[str, float]]
"""Metrics of a model on one split."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which model, and which part of it trains.

    Attributes:
        weights: shipped weights by name, or a path; "" initialises a model of ``size``.
        size: name of an architecture, for a model without weights.
        trainable: ``all`` or ``lora``.
        lora: the adapters, where ``trainable`` is ``lora``.
        loss: ``clip`` or ``siglip``.
        dtype: of the computation; parameters are float32.
        seed: of the initialisation.
    """

    weights: str = "nano"
    size: str = "nano"
    trainable: str = "all"
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    loss: str = "clip"
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the names."""
        _check_name("trainable", self.trainable, ("all", "lora"))
        _check_name("loss", self.loss, LOSSES)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images and captions.

    Attributes:
        name: ``clipart`` (the bundled shard), or a dataset that ``make data`` prepares:
            ``openclipart``, ``emoji``.
        artists: of ``emoji``: whose drawings; empty for all.
        captions: ``name``, or ``name_tags`` for more captions a record.
        data_dir: where prepared datasets are; "" for the default.
    """

    name: str = "clipart"
    artists: tuple[str, ...] = ()
    captions: str = "name"
    data_dir: str = ""

    def __post_init__(self) -> None:
        """Checks the name."""
        _check_name("name", self.name, ("clipart", "openclipart", "emoji"))


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run. See the parts.

    Attributes:
        loop: length and what is logged, evaluated and saved when.
        optimizer: the optimizer.
        model: the model.
        data: training, validation and test data are its splits.
        pipeline: batches and augmentation.
        mesh: devices.
        export: path without suffix that the final weights are written to; "" for none.
    """

    loop: LoopConfig
    optimizer: OptimizerConfig
    model: ModelConfig
    data: DataConfig
    pipeline: PipelineConfig
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    export: str = ""

    def __post_init__(self) -> None:
        """Checks that what the parts share is the same."""
        for name, one, two in (
            ("num_steps", self.loop.num_steps, self.optimizer.num_steps),
            ("batch_size", self.loop.batch_size, self.pipeline.batch_size),
        ):
            if one != two:
                raise ValueError(
                    f"loop.{name}={one} and the same setting elsewhere, {two}, differ"
                )


class Model(NamedTuple):
    """A model in parts, the trainable ones as the optimizer sees them.

    Attributes:
        graphdef: for ``nnx.merge(graphdef, params, frozen)``.
        params: nested dict of the arrays that train.
        frozen: nested dict of the others.
    """

    graphdef: nnx.GraphDef
    params: PyTree
    frozen: PyTree

    def merge(self, params: PyTree, frozen: PyTree) -> VisionText:
        """Puts a module together from parts that were trained."""
        return nnx.merge(self.graphdef, params, frozen)


def split_model(model: VisionText, trainable: str = "all") -> Model:
    """Splits a module into what trains and what does not.

    Args:
        model: with adapters, if they are what trains.
        trainable: ``all`` parameters, or those of ``lora``.
    """
    kind = LoRAParam if trainable == "lora" else nnx.Param
    graphdef, *states = nnx.split(model, kind, ...)
    params, frozen = map(nnx.to_pure_dict, states)
    return Model(graphdef, params, frozen)


def build_model(config: ModelConfig, vocab_size: int, text_length: int) -> Model:
    """Loads or initialises the model and puts adapters on it if they are what trains.

    Args:
        config: which model.
        vocab_size: of the tokenizer.
        text_length: S, of the batches.

    Raises:
        ValueError: if names are unknown, the LoRA pattern matches nothing, or the
            weights were made for another vocabulary or shorter captions.
    """
    if config.weights:
        model = pretrained.load(config.weights, dtype=config.dtype)
    else:
        architecture = named_config(
            config.size,
            vocab_size=vocab_size,
            text_length=text_length,
            dtype=config.dtype,
        )
        model = nnx.jit(lambda: VisionText(architecture, rngs=nnx.Rngs(config.seed)))()
    made_for = model.config
    if made_for.vocab_size != vocab_size or made_for.text_length < text_length:
        raise ValueError(
            f"the weights {config.weights!r} are for {made_for.vocab_size} tokens and "
            f"captions up to {made_for.text_length}; the data has {vocab_size} and "
            f"{text_length}"
        )
    if config.trainable == "lora":
        _log.info("%s", add_lora(model, config.lora, rngs=nnx.Rngs(config.seed)))
    else:
        _log.info("all %s parameters train", f"{parameter_count(model):,}")
    return split_model(model, config.trainable)


def make_loss(model: Model, loss: str = "clip") -> LossFn:
    """Returns the contrastive loss of a batch as a function of the model's parts.

    Args:
        model: its structure is used, its arrays are not.
        loss: ``clip`` or ``siglip``.
    """

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        image_z, text_z, scale, bias = model.merge(params, frozen)(batch)
        return LOSSES[loss](image_z, text_z, scale, bias), {"logit_scale": scale}

    return loss_fn


def make_evaluate(model: Model, score: Score) -> Evaluate:
    """Returns the evaluation of a model in parts, as the loop calls it.

    Args:
        model: its structure is used, its arrays are not.
        score: the evaluation of a module.
    """
    return lambda params, frozen: score(model.merge(params, frozen))


def build_source(config: DataConfig, split: str) -> MemorySource:
    """Opens a split of the data.

    Raises:
        ValueError: if names are unknown.
        MissingDataError: if the dataset is missing; names the command that brings it.
    """
    if config.name == "clipart":
        return bundled_clipart(split)
    return tfds_source(
        config.name,
        split,
        config.data_dir or None,
        artists=config.artists or None,
        captions=config.captions,
    )


def informed(config: RunConfig, examples: int) -> OptimizerConfig:
    """The optimizer's settings, with the epochs that follow from the rest.

    Args:
        config: a run.
        examples: that it trains on.
    """
    if config.optimizer.epochs is not None:
        return config.optimizer
    epochs = config.loop.num_steps * config.loop.batch_size / examples
    return dataclasses.replace(config.optimizer, epochs=epochs)


def run_vision_text(
    config: RunConfig,
    score_on: Callable[[MemorySource], Score],
    workdir: str | Path | None = None,
) -> tuple[RunResult, dict[str, float]]:
    """Trains and evaluates; resumes where ``workdir`` has a checkpoint.

    Several processes call this alike; process 0 writes the results.

    Args:
        config: the run.
        score_on: builds the evaluation on a split.
        workdir: for logs and checkpoints; gets ``result.json`` too. None for neither.

    Returns:
        The run, and the metrics of the final parameters on the test split.

    Raises:
        Interrupted: on SIGINT or SIGTERM, with all saved.
        ValueError: see :func:`meta_opt.finetuning.loop.run` and the builders here.
    """
    tokenizer = load_tokenizer()
    model = build_model(config.model, tokenizer.vocab_size, config.pipeline.text_length)
    source = build_source(config.data, "train")
    rows = local_rows(make_mesh(config.mesh), config.loop.batch_size)
    batches = make_iterator(source, tokenizer, config.pipeline, rows)

    def evaluation_on(split: str) -> Evaluate:
        return make_evaluate(model, score_on(build_source(config.data, split)))

    result = run(
        config.loop,
        params=model.params,
        frozen=model.frozen,
        loss_fn=make_loss(model, config.model.loss),
        tx=make_optimizer(informed(config, len(source))),
        batches=batches,
        evaluate=evaluation_on("validation"),
        mesh=config.mesh,
        rules=VISION_TEXT_RULES,
        workdir=workdir,
        resolved_config=dataclasses.asdict(config),
        label=config.optimizer.name,
    )
    test = dict(evaluation_on("test")(result.state.params, result.state.frozen))
    if workdir is not None and jax.process_index() == 0:
        _write_result(Path(workdir), result, test)
    if config.export:
        trained = model.merge(*to_host((result.state.params, model.frozen)))
        if config.model.trainable == "lora":
            merge_lora(trained)
        if jax.process_index() == 0:
            pretrained.save(config.export, trained)
    return result, test


def _write_result(workdir: Path, result: RunResult, test: dict[str, float]) -> None:
    summary: dict[str, Any] = {
        "test": test,
        "validation": next(
            (
                record
                for record in reversed(result.history)
                if "validation/loss" in record
            ),
            None,
        ),
        "train_seconds": result.train_seconds,
        "compile_seconds": result.compile_seconds,
        "optimizer_bytes": result.optimizer_bytes,
        "trainable": result.trainable,
        "nonfinite": int(result.state.nonfinite),
    }
    with write_atomic(workdir / "result.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _check_name(setting: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(
            f"{setting}={value!r} is none of {', '.join(known)}"
            f"{near_match(value, known)}"
        )
