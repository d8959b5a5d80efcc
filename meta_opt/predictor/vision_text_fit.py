"""Fits a given vision-text model: CLIP, SigLIP, PaliGemma or one of this library."""

import dataclasses
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from meta_opt.data.pipeline import PipelineConfig
from meta_opt.data.sources.sample_schema import Sample
from meta_opt.models import huggingface, pretrained
from meta_opt.models.generative import GenerativeConfig
from meta_opt.models.lora import LoRAConfig
from meta_opt.parallel.mesh import MeshConfig, make_mesh
from meta_opt.predictor.answers import answers_of
from meta_opt.predictor.backend import (
    DEFAULT_PROMPT,
    MODEL,
    VisionTextBackend,
)
from meta_opt.predictor.decision import Decision, Decisions, log_decisions
from meta_opt.predictor.devices import choose_devices
from meta_opt.predictor.fitted import Fitted
from meta_opt.predictor.fitting import Fitting
from meta_opt.predictor.plan import TrainingPlan, choose_loop
from meta_opt.predictor.training import train
from meta_opt.text_files import write_jsonl
from meta_opt.types import from_config
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.image_text import ImageTextConfig
from meta_opt.workloads.image_text_architecture import ModelConfig, is_folder
from meta_opt.workloads.image_text_data import DataConfig

_ADAPTED = r"(attention/(query|key|value|out)|mlp/(up|gate|down))/kernel$"
_MOST_EVALUATED = {"retrieve": 1000, "caption": 200}
_MAX_UNREADABLE = 0.2


@dataclasses.dataclass(frozen=True)
class VisionTextPlan(TrainingPlan):
    """Training plan with the model and its task.

    Attributes:
        kind: the task, ``retrieve`` or ``caption``.
        model: the model, and which of its parameters are trained.
    """

    kind: str
    model: ModelConfig


def plan_vision_text(
    fitting: Fitting, weights: str
) -> tuple[VisionTextPlan, list[Decision]]:
    """Makes a plan, or returns the plan that an interrupted call recorded.

    Args:
        fitting: the input of the fit: images with texts, to retrieve or to generate.
        weights: folder or name of the model.

    Raises:
        ValueError: a model for another task.
    """
    return fitting.call.record.decide(
        "plan",
        lambda: _make_plan(fitting, weights),
        dataclasses.asdict,
        functools.partial(from_config, VisionTextPlan),
    )


def _make_plan(fitting: Fitting, weights: str) -> tuple[VisionTextPlan, Decisions]:
    columns, decisions = fitting.columns, Decisions()
    loss = _loss_of(weights)
    kind = "caption" if loss == "captioning" else "retrieve"
    if columns.kind != kind or "image" not in columns.modalities:
        raise ValueError(
            f"model={weights!r} is for the task {kind!r} on images, and the task of "
            f"the samples is {columns.kind!r} on {', '.join(columns.modalities)}: "
            "leave model out, or give "
            + (
                "a target of texts"
                if kind == "caption"
                else "images and texts without a target"
            )
        )
    if other := [m for m in columns.modalities if m not in ("image", "text")]:
        reason = f"the model {weights} reads only images and texts"
        decisions.choose("not_read", other, reason)
    examples = len(fitting.parts["train"])
    decisions.choose("model", weights, f"as given; its loss is {loss}")
    decisions.choose(
        "trained",
        "lora",
        f"{examples} training samples are few for a model of this size: adapters of "
        "rank 8 on all attention and MLP kernels",
    )
    loop = choose_loop(examples, fitting.call.preset, fitting.seed, decisions)
    metric, mode = ("i2t_r1", "max") if kind == "retrieve" else ("loss", "min")
    decisions.choose("metric", metric, f"on validation data, for the task {kind!r}")
    model = ModelConfig(
        weights=weights,
        trainable="lora",
        lora=LoRAConfig(_ADAPTED),
        loss=loss,
        dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
    )
    return VisionTextPlan(loop, metric, mode, kind, model), decisions


def fit_vision_text(fitting: Fitting, weights: str) -> Fitted:
    """Trains adapters on a vision-text model.

    Args:
        fitting: the input of the fit: images with texts, to retrieve or to generate.
        weights: folder or name of the model.

    Raises:
        ValueError: a model for another task, samples whose images are in tar files,
            or a time limit that is too short.
    """
    plan, decisions = plan_vision_text(fitting, weights)
    devices, found = choose_devices(plan.loop.batch_size, fitting.call.devices)
    # The model is large: parameters and optimizer state are sharded.
    plan = dataclasses.replace(plan, mesh=MeshConfig(fsdp=devices))
    decisions = [*decisions, *found]
    log_decisions(decisions)
    folder = Path(tempfile.mkdtemp(prefix="meta-opt-"))
    try:
        return _fit_in(folder, fitting, plan, decisions)
    except BaseException:
        # On success, the returned model removes its folder.
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _fit_in(
    folder: Path, fitting: Fitting, plan: VisionTextPlan, decisions: list[Decision]
) -> Fitted:
    """Implements `fit_vision_text`, with files in a folder that the model keeps."""
    clock, kind = fitting.call.clock, plan.kind
    file = folder / "samples.jsonl"
    _write_samples(file, fitting, kind)
    total = sum(map(len, fitting.parts.values()))
    config = ImageTextConfig(
        plan.model,
        DataConfig(
            name=str(file),
            max_evaluated=_MOST_EVALUATED[kind],
            max_unreadable=int(_MAX_UNREADABLE * total),
            eval_batch_size=min(64, total),
            prompt=DEFAULT_PROMPT if kind == "caption" else "",
        ),
        # None selects the text length of the model.
        PipelineConfig(text_length=None),
    )
    export = ExportConfig(
        str(folder / MODEL), "huggingface" if is_folder(plan.model.weights) else "model"
    )
    workload = config.build(fitting.seed, make_mesh(plan.mesh), export)
    seconds = {"reading": clock.spent()}
    trained = train(workload, plan, fitting.call)
    seconds["training"] = clock.spent() - sum(seconds.values())
    assert workload.write is not None
    workload.write(trained.params, trained.frozen)
    backend = VisionTextBackend(kind, folder / MODEL, folder)
    split = fitting.answered
    readable = backend.readable(fitting.parts[split])[: _MOST_EVALUATED[kind]]
    answers = answers_of(kind, readable, backend.outputs(readable), ())
    metrics = {"validation": trained.validation}
    if split == "test":
        metrics["test"] = backend.evaluate(readable, split).metrics
    seconds["testing"] = clock.spent() - sum(seconds.values())
    return Fitted(
        backend=backend,
        columns=fitting.columns,
        class_names=(),
        decisions=[*decisions, *trained.decisions],
        trained=trained,
        metric=plan.metric,
        metrics=metrics,
        answers=answers,
        without={},
        seconds=seconds,
    )


def _loss_of(weights: str) -> str:
    """Returns the loss of a model: ``captioning``, ``clip`` or ``siglip``.

    Raises:
        ValueError: an unknown model.
    """
    if not is_folder(weights):
        made = pretrained.read_config(weights)
        return "captioning" if isinstance(made, GenerativeConfig) else "clip"
    if huggingface.is_generative(weights):
        return "captioning"
    # CLIP's image tower has a class token, SigLIP's does not.
    return "clip" if huggingface.read_config(weights).class_token else "siglip"


def _write_samples(file: Path, fitting: Fitting, kind: str) -> None:
    """Writes the samples to the JSONL file that a run reads."""
    write_jsonl(
        file,
        (
            _line(sample, split, kind)
            for split, part in fitting.parts.items()
            for sample in part
            if "image" in sample.media
        ),
    )


def _line(sample: Sample, split: str, kind: str) -> dict[str, Any]:
    media = sample.media["image"]
    if media.member:
        raise ValueError(
            f"{media.name} is in a tar file, but model=... needs separate files: "
            "unpack it"
        )
    line: dict[str, Any] = {"image": str(media.file.absolute()), "split": split}
    if kind == "retrieve":
        return {**line, "text": sample.fields.reads}
    line["target"] = list(sample.fields.target)
    if sample.fields.reads:
        line["prompt"] = sample.fields.reads
    return line
