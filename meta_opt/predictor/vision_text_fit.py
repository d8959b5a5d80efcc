"""Fits a vision-text model of the user's: CLIP, SigLIP, PaliGemma, or one of ours."""

import dataclasses
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from meta_opt.data.pipeline import PipelineConfig
from meta_opt.data.sources.sample_schema import Sample
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.models import huggingface, pretrained
from meta_opt.models.generative import GenerativeConfig
from meta_opt.models.lora import LoRAConfig
from meta_opt.predictor.answers import answers_of
from meta_opt.predictor.backend import (
    DEFAULT_PROMPT,
    MODEL,
    VisionTextBackend,
)
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.fitted import Fitted, Fitting
from meta_opt.predictor.plan import choose_loop
from meta_opt.predictor.training import train
from meta_opt.types import from_config, write_atomic
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.image_text import ImageTextConfig
from meta_opt.workloads.image_text_data import DataConfig
from meta_opt.workloads.image_text_model import ModelConfig, is_folder

_ADAPTED = r"(attention/(query|key|value|out)|mlp/(up|gate|down))/kernel$"
_MOST_EVALUATED = {"retrieve": 1000, "caption": 200}
_MAX_UNREADABLE = 0.2


@dataclasses.dataclass(frozen=True)
class VisionTextPlan:
    """How a vision-text model is trained.

    Attributes:
        kind: what it is for, ``retrieve`` or ``caption``.
        model: the model, and what of it trains.
        loop: how long.
        metric: of the validation that chooses.
        mode: whether a better one is ``min`` or ``max``.
    """

    kind: str
    model: ModelConfig
    loop: LoopConfig
    metric: str
    mode: str


def plan_vision_text(
    fitting: Fitting, weights: str
) -> tuple[VisionTextPlan, list[Decision]]:
    """Chooses how a model is trained, or returns what the call has chosen before.

    Args:
        fitting: what from; pictures with texts, to be found or to be written.
        weights: folder or name of the model.

    Raises:
        ValueError: a model that is not for what is asked.
    """
    return fitting.record.decide(
        "plan",
        lambda: _chosen(fitting, weights),
        dataclasses.asdict,
        functools.partial(from_config, VisionTextPlan),
    )


def _chosen(fitting: Fitting, weights: str) -> tuple[VisionTextPlan, list[Decision]]:
    columns = fitting.columns
    decisions: list[Decision] = []

    def choose(name: str, value: object, reason: str) -> None:
        decisions.append(Decision(name, value, reason))

    loss = _loss_of(weights)
    kind = "caption" if loss == "captioning" else "retrieve"
    if columns.kind != kind or "image" not in columns.modalities:
        raise ValueError(
            f"model={weights!r} is to {kind} pictures, and the samples ask to "
            f"{columns.kind} {', '.join(columns.modalities)}: leave model out, or give "
            + (
                "a target of texts"
                if kind == "caption"
                else "pictures with texts alone"
            )
        )
    if other := [m for m in columns.modalities if m not in ("image", "text")]:
        choose("not_read", other, f"the model {weights} reads only pictures and texts")
    examples = len(fitting.parts["train"])
    choose("model", weights, f"as given; its loss is {loss}")
    choose(
        "trained",
        "lora",
        f"{examples} training samples are few for a model of this size: adapters of "
        "rank 8 on all attention and MLP kernels",
    )
    loop = choose_loop(examples, fitting.preset, fitting.seed, choose)
    metric, mode = ("i2t_r1", "max") if kind == "retrieve" else ("loss", "min")
    choose("metric", metric, f"on validation data, for the task {kind!r}")
    model = ModelConfig(
        weights=weights,
        trainable="lora",
        lora=LoRAConfig(_ADAPTED),
        loss=loss,
        dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
    )
    return VisionTextPlan(kind, model, loop, metric, mode), decisions


def fit_vision_text(fitting: Fitting, weights: str) -> Fitted:
    """Trains adapters on a vision-text model.

    Args:
        fitting: what from; pictures with texts, to be found or to be written.
        weights: folder or name of the model.

    Raises:
        ValueError: a model that is not for what is asked, samples whose pictures are
            in tar files, or a time limit that is too short.
    """
    plan, decisions = plan_vision_text(fitting, weights)
    folder = Path(tempfile.mkdtemp(prefix="meta-opt-"))
    try:
        return _fit_in(folder, fitting, plan, decisions)
    except BaseException:
        # Of a model that is returned, the folder goes with it.
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _fit_in(
    folder: Path, fitting: Fitting, plan: VisionTextPlan, decisions: list[Decision]
) -> Fitted:
    """`fit_vision_text`, with files in a folder that the model keeps."""
    clock, kind = fitting.clock, plan.kind
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
        # Texts as long as the model reads them.
        PipelineConfig(text_length=None),
    )
    export = ExportConfig(
        str(folder / MODEL), "huggingface" if is_folder(plan.model.weights) else "model"
    )
    workload = config.build(fitting.seed, None, export)
    seconds = {"reading": clock.spent()}
    trained = train(
        workload,
        plan.loop,
        plan.metric,
        plan.mode,
        fitting.preset,
        clock,
        fitting.run_folder,
        fitting.progress,
        fitting.record,
    )
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
        backend,
        fitting.columns,
        (),
        [*decisions, *trained.decisions],
        trained,
        plan.metric,
        metrics,
        answers,
        {},
        seconds,
    )


def _loss_of(weights: str) -> str:
    """The loss that a model is trained with: ``captioning``, ``clip`` or ``siglip``.

    Raises:
        ValueError: no such model.
    """
    if not is_folder(weights):
        made = pretrained.read_config(weights)
        return "captioning" if isinstance(made, GenerativeConfig) else "clip"
    if huggingface.is_generative(weights):
        return "captioning"
    # CLIP's tower has a class token; SigLIP's has none.
    return "clip" if huggingface.read_config(weights).class_token else "siglip"


def _write_samples(file: Path, fitting: Fitting, kind: str) -> None:
    """The samples in the form that a run reads."""
    lines = [
        json.dumps(_line(sample, split, kind))
        for split, part in fitting.parts.items()
        for sample in part
        if "image" in sample.media
    ]
    with write_atomic(file) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(sample: Sample, split: str, kind: str) -> dict[str, Any]:
    media = sample.media["image"]
    if media.member:
        raise ValueError(
            f"{media.name} lies in a tar file, and model=... reads files: unpack it"
        )
    line: dict[str, Any] = {"image": str(media.file.absolute()), "split": split}
    if kind == "retrieve":
        return {**line, "text": sample.fields.reads}
    line["target"] = list(sample.fields.target)
    if sample.fields.reads:
        line["prompt"] = sample.fields.reads
    return line
