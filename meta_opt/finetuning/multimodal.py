"""Training a multimodal model on a task of the suite, from configuration to result.

The Meta Optimizer framework's run (Muhajab et al.): inputs, fusion, the adaptive
optimizer with a group for each modality, and the feedback that the loop gives it.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from meta_opt.data.array_batches import array_batches
from meta_opt.data.multimodal import SUITE
from meta_opt.finetuning.loop import Evaluate, LoopConfig, RunResult, run
from meta_opt.finetuning.multimodal_inputs import Inputs, InputsConfig, read_inputs
from meta_opt.finetuning.step import LossFn
from meta_opt.losses.captioning import captioning_loss
from meta_opt.losses.contrastive import clip_loss
from meta_opt.models.captioner import CaptionerConfig
from meta_opt.models.fusion import FusionConfig
from meta_opt.models.lora import LoRAConfig, LoRAParam, add_lora
from meta_opt.models.multimodal import HeadsConfig, Multimodal
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.parallel.mesh import MeshConfig, check_batch_size, local_rows, make_mesh
from meta_opt.parallel.sharding import FSDP_RULES
from meta_opt.types import PyTree, check_name, write_atomic

_ENCODERS = re.compile(r"^encoders/")


@dataclasses.dataclass(frozen=True)
class MultimodalConfig:
    """What is made of the encoders, and which part of it trains.

    Attributes:
        fusion: width and depth of what all modalities meet in.
        embed_dim: width of the vectors of retrieval.
        captioner: of captions; its vocabulary is that of the tokenizer that ships here.
        trainable: ``all``, or ``lora``: adapters on the encoders, and all that is new
            (projections, fusion and heads).
        lora: the adapters, where ``trainable`` is ``lora``.
        seed: of what is new.
    """

    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)
    embed_dim: int = 64
    captioner: CaptionerConfig = dataclasses.field(default_factory=CaptionerConfig)
    trainable: str = "all"
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the name."""
        check_name("model.trainable", self.trainable, ("all", "lora"))


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


class Parts(NamedTuple):
    """A model in parts.

    Attributes:
        graphdef: its structure.
        params: the trainable arrays.
        frozen: the others.
    """

    graphdef: nnx.GraphDef
    params: PyTree
    frozen: PyTree

    def merge(self, params: PyTree, frozen: PyTree) -> Multimodal:
        """The module with these arrays."""
        return nnx.merge(self.graphdef, params, frozen)


def build_multimodal(config: MultimodalConfig, inputs: Inputs, task: str) -> Parts:
    """Builds the model of a task.

    Args:
        config: of the model.
        inputs: with the encoders.
        task: one of `SUITE`.

    Raises:
        ValueError: adapters that match no kernel.
    """
    kind = SUITE[task].kind
    heads = HeadsConfig(
        classes=len(inputs.class_names) if kind == "classify" else 0,
        scores=1 if kind == "score" else 0,
        embed_dim=config.embed_dim if kind == "retrieve" else 0,
        captioner=dataclasses.replace(
            config.captioner,
            vocab_size=inputs.tokenizer.vocab_size if kind == "caption" else 0,
        ),
    )
    graph, arrays = nnx.split(nnx.Dict(inputs.encoders))

    # In one program: operation by operation it would take far longer.
    @nnx.jit
    def create(arrays: PyTree) -> Multimodal:
        model = Multimodal(
            config.fusion,
            nnx.merge(graph, arrays),
            SUITE[task].modalities,
            heads,
            rngs=nnx.Rngs(config.seed),
        )
        if config.trainable == "lora":
            add_lora(model, config.lora, rngs=nnx.Rngs(config.seed + 1))
        return model

    model = create(arrays)
    return Parts(*nnx.split(model, _trains(config.trainable), ...))


def _trains(trainable: str) -> Callable[[Any, Any], bool]:
    def chosen(path: Any, value: Any) -> bool:
        if not isinstance(value, nnx.Param):
            return False
        of_encoder = _ENCODERS.search("/".join(map(str, path))) is not None
        return (
            trainable == "all" or not of_encoder or isinstance(value, LoRAParam)
        )

    return chosen


def make_multimodal_loss(parts: Parts, task: str) -> LossFn:
    """The loss of a batch as a function of the model's arrays.

    Cross-entropy of classes, squared error of scores, symmetric contrastive loss of
    pairs, or cross-entropy of a caption's tokens.

    Args:
        parts: its structure is used, its arrays are not.
        task: one of `SUITE`.
    """
    kind = SUITE[task].kind

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: dict[str, Any], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del rng
        model = parts.merge(params, frozen)
        if kind == "classify":
            logits, labels = model.classify(batch), batch["label"]
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            hits = jnp.argmax(logits, axis=-1) == labels
            return jnp.mean(nats), {"accuracy": jnp.mean(hits)}
        if kind == "score":
            error = model.score(batch)[:, 0] - batch["score"]
            return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}
        if kind == "retrieve":
            image, text = (model.embed(batch, (m,)) for m in ("image", "text"))
            return clip_loss(image, text, model.scale), {"logit_scale": model.scale}
        return captioning_loss(*model.caption_states(batch, batch["caption"])), {}

    return loss_fn


ScoreOn = Callable[[str, Inputs, str], Callable[[Multimodal], Mapping[str, float]]]
"""``(task, inputs, split) -> (model -> metrics)``."""


class MultimodalFinished(NamedTuple):
    """What a finished run gives.

    Attributes:
        result: the run.
        test: metrics of the final parameters on the test split.
        missing: by split and modality, how many samples lack it.
    """

    result: RunResult
    test: dict[str, float]
    missing: dict[str, dict[str, int]]


def evaluate_with(
    parts: Parts, score: Callable[[Multimodal], Mapping[str, float]]
) -> Evaluate:
    """The evaluation of a model in parts, as the loop calls it."""
    return lambda params, frozen: score(parts.merge(params, frozen))


def informed_of(config: MultimodalRunConfig, examples: int) -> OptimizerConfig:
    """The optimizer's settings, with the epochs that follow from the rest."""
    if config.optimizer.epochs is not None:
        return config.optimizer
    epochs = config.loop.num_steps * config.loop.batch_size / examples
    return dataclasses.replace(config.optimizer, epochs=epochs)


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
    mesh, task = make_mesh(config.mesh), config.inputs.task
    check_batch_size(mesh, config.loop.batch_size, config.loop.accumulation_steps)
    inputs = read_inputs(config.inputs)
    train = inputs.splits["train"]
    batches = array_batches(
        train,
        config.loop.batch_size,
        config.loop.seed,
        local_rows(mesh, config.loop.batch_size),
    )
    parts = build_multimodal(config.model, inputs, task)
    result = run(
        config.loop,
        params=parts.params,
        frozen=parts.frozen,
        loss_fn=make_multimodal_loss(parts, task),
        tx=make_optimizer(informed_of(config, len(jax.tree.leaves(train)[0]))),
        batches=batches,
        evaluate=evaluate_with(parts, score_on(task, inputs, "validation")),
        mesh=config.mesh,
        rules=FSDP_RULES,
        workdir=workdir,
        resolved_config=dataclasses.asdict(config),
        label=config.optimizer.name,
        take_over=True,
    )
    trained = parts.merge(result.state.params, result.state.frozen)
    test = dict(score_on(task, inputs, "test")(trained))
    finished = MultimodalFinished(result, test, inputs.missing)
    if workdir is not None and jax.process_index() == 0:
        summary = {
            "test": test,
            "validation": result.last_evaluation,
            "missing": inputs.missing,
            **result.figures(),
        }
        with write_atomic(Path(workdir) / "result.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    return finished
