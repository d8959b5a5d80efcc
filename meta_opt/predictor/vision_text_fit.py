"""Fits a vision-text model of the user's: CLIP, SigLIP, PaliGemma, or one of ours."""

import json
from pathlib import Path
from typing import Any

import jax

from meta_opt.data.sources.sample_schema import Sample
from meta_opt.models.generative import GenerativeConfig
from meta_opt.models.lora import LoRAConfig
from meta_opt.predictor.answers import answers_of
from meta_opt.predictor.backend import (
    DEFAULT_PROMPT,
    MODEL,
    VisionTextBackend,
    temporary_folder,
)
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.fitted import Fitted, Fitting
from meta_opt.predictor.plan import choose_loop
from meta_opt.predictor.training import train
from meta_opt.types import write_atomic
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.image_text import ImageTextConfig
from meta_opt.workloads.image_text_data import DataConfig
from meta_opt.workloads.image_text_model import ModelConfig, architecture, is_folder

_ADAPTED = r"(attention/(query|key|value|out)|mlp/(up|gate|down))/kernel$"
_MOST_EVALUATED = {"retrieve": 1000, "caption": 200}
_MAX_UNREADABLE = 0.2


def fit_vision_text(fitting: Fitting, weights: str) -> Fitted:
    """Trains adapters on a vision-text model.

    Args:
        fitting: what from; pictures with texts, to be found or to be written.
        weights: folder or name of the model.

    Raises:
        ValueError: a model that is not for what is asked, samples whose pictures are
            in tar files, or a time limit that is too short.
    """
    columns, clock = fitting.columns, fitting.clock
    decisions: list[Decision] = []

    def choose(name: str, value: object, reason: str) -> None:
        decisions.append(Decision(name, value, reason))

    losses = [_loss_of(weights)]
    kind = "caption" if losses[0] == "captioning" else "retrieve"
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
        choose("not_read", other, f"the model {weights} reads pictures and texts")
    examples = len(fitting.parts["train"])
    choose("model", weights, f"as given; its loss is {losses[0]}")
    choose(
        "trained",
        "lora",
        f"{examples} training samples: adapters of rank 8 on all attention and MLP "
        "kernels of a model that is large beside them",
    )
    loop = choose_loop(examples, fitting.preset, fitting.seed, choose)
    metric, mode = ("accuracy", "max") if kind == "retrieve" else ("loss", "min")
    if kind == "retrieve":
        metric = "i2t_r1"
    choose("metric", metric, f"of validation; a task to {kind}")
    holder = temporary_folder()
    folder = Path(holder.name)
    file = folder / "samples.jsonl"
    _write_samples(file, fitting, kind)
    total = sum(map(len, fitting.parts.values()))
    config = ImageTextConfig(
        ModelConfig(
            weights=weights,
            trainable="lora",
            lora=LoRAConfig(_ADAPTED),
            loss=losses[0],
            dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
        ),
        DataConfig(
            name=str(file),
            max_evaluated=_MOST_EVALUATED[kind],
            max_unreadable=int(_MAX_UNREADABLE * total),
            eval_batch_size=min(64, total),
            prompt=DEFAULT_PROMPT if kind == "caption" else "",
        ),
    )
    config = _whole_texts(config)
    export = ExportConfig(
        str(folder / MODEL), "huggingface" if is_folder(weights) else "model"
    )
    workload = config.build(fitting.seed, None, export)
    seconds = {"reading": clock.spent()}
    trained = train(
        workload,
        loop,
        metric,
        mode,
        fitting.preset,
        clock,
        fitting.run_folder,
        fitting.progress,
    )
    seconds["training"] = clock.spent() - sum(seconds.values())
    assert workload.write is not None
    workload.write(trained.params, trained.frozen)
    backend = VisionTextBackend(kind, folder / MODEL, holder)
    split = fitting.answered
    readable = backend.readable(fitting.parts[split])[: _MOST_EVALUATED[kind]]
    answers = answers_of(kind, readable, backend.outputs(readable), ())
    test = backend.evaluate(readable, split).metrics if split == "test" else {}
    seconds["testing"] = clock.spent() - sum(seconds.values())
    return Fitted(
        backend,
        (),
        [*decisions, *trained.decisions],
        trained,
        metric,
        test,
        answers,
        {},
        seconds,
    )


def _loss_of(weights: str) -> str:
    """The loss that a model was pretrained with.

    Raises:
        ValueError: no such model.
    """
    for loss in ("captioning", "siglip", "clip"):
        try:
            made = architecture(ModelConfig(weights=weights, loss=loss))
        except ValueError as error:
            if "is not for" in str(error):
                continue
            raise
        if isinstance(made, GenerativeConfig):
            return "captioning"
        # CLIP's tower has a class token; SigLIP's pools by attention.
        return "clip" if made.class_token or not is_folder(weights) else "siglip"
    raise ValueError(f"model={weights!r} is trained with no loss that is known")


def _whole_texts(config: ImageTextConfig) -> ImageTextConfig:
    import dataclasses

    pipeline = dataclasses.replace(config.pipeline, text_length=None)
    return dataclasses.replace(config, pipeline=pipeline)


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
