"""Outlines what `fit` would do, without training."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.data.preprocessing.pictures import Unreadable
from meta_opt.data.sources.sample_schema import Sample
from meta_opt.data.sources.sample_task import load_samples
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.memory_estimate import MemoryEstimate, estimate_memory
from meta_opt.models.lora import add_lora
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.devices import choose_devices
from meta_opt.predictor.fit import prepare
from meta_opt.predictor.fitting import FitCall, Fitting
from meta_opt.predictor.multimodal_fit import plan_multimodal
from meta_opt.predictor.plan import encoders_of
from meta_opt.predictor.presets import Preset, find_preset
from meta_opt.predictor.rows import class_names_of
from meta_opt.predictor.table import Data
from meta_opt.predictor.training import fit_optimizer
from meta_opt.predictor.vision_text_fit import plan_vision_text
from meta_opt.types import PyTree
from meta_opt.workloads.image_text import image_text_loss
from meta_opt.workloads.image_text_architecture import (
    CONTRASTIVE,
    architecture,
    kind_of,
)
from meta_opt.workloads.image_text_model import trainable_filter
from meta_opt.workloads.image_text_preprocessing import read_preprocessing
from meta_opt.workloads.multimodal import multimodal_loss_fn
from meta_opt.workloads.multimodal_inputs import InputReader
from meta_opt.workloads.multimodal_model import model_factory, split_multimodal
from meta_opt.workloads.workload import LossFn, SplitModule, split_module

_MAX_OPENED = 8
"""Number of samples per modality that are opened to find the shapes of arrays."""


@dataclasses.dataclass(frozen=True)
class Outline:
    """What `meta_opt.fit` would do.

    Attributes:
        decisions: chosen settings with reasons.
        trained_parameters: number of trained parameters.
        other_parameters: number of frozen parameters in the training step.
        num_steps: maximum number of optimizer updates; early stopping and a time limit
            may lead to fewer.
        batch_size: B, the batch size.
        devices: number of devices that a batch is divided over.
        memory: estimated memory of one training step, per device.
        sample_bytes: size in bytes of the arrays of all samples, which stay in memory;
            0 if files are read during training.
    """

    decisions: tuple[Decision, ...]
    trained_parameters: int
    other_parameters: int
    num_steps: int
    batch_size: int
    devices: int
    memory: MemoryEstimate
    sample_bytes: int

    def __str__(self) -> str:
        """Returns one line for each decision, then for each figure."""
        memory = ", ".join(
            f"{name} {value / 2**20:.0f}"
            for name, value in dataclasses.asdict(self.memory).items()
        )
        total = self.memory.total + self.sample_bytes
        of_each = f" of each of {self.devices} devices" if self.devices > 1 else ""
        return "\n".join(
            [
                *map(str, self.decisions),
                f"trained parameters: {self.trained_parameters:,} of "
                f"{self.trained_parameters + self.other_parameters:,}",
                f"steps: at most {self.num_steps}, of {self.batch_size} samples",
                f"memory{of_each}: about {total / 2**20:.0f} MiB ({memory}, samples "
                f"{self.sample_bytes / 2**20:.0f})",
            ]
        )


class _Subject(NamedTuple):
    module: SplitModule
    loss_fn: LossFn
    example: PyTree
    loop: LoopConfig
    sample_bytes: int
    sharded: bool


def plan(
    data: Data,
    target: str | None = None,
    *,
    validation: Data | None = None,
    test: Data | None = None,
    model: str | os.PathLike | None = None,
    preset: str | Preset = "good",
    encoders: Mapping[str, str] | None = None,
    devices: int | None = None,
    seed: int = 0,
    data_dir: str | os.PathLike = "",
) -> Outline:
    """Outlines what `meta_opt.fit` would do with the same arguments.

    Nothing is compiled or trained: the tables are read, some of the files are opened,
    and the step is traced to estimate its memory.

    Args:
        data: samples; this and the other arguments are as for `meta_opt.fit`.
        target: name of the column to predict.
        validation: validation samples, which select the model.
        test: test samples, for the final metrics.
        model: model to train instead of the encoders.
        preset: name or settings of the training effort.
        encoders: names of encoders by modality.
        devices: number of devices, which need not be present.
        seed: random seed.
        data_dir: folder of pretrained encoders.

    Raises:
        ValueError: as for `meta_opt.fit`.
        FileNotFoundError: a file that does not exist.
        MissingDataError: encoders that are not prepared.

    Example:
        >>> import meta_opt
        >>> print(meta_opt.plan("samples.jsonl"))  # doctest: +SKIP
    """
    names = encoders_of(encoders, model)
    chosen = find_preset(preset)
    given = {"data": data, "validation": validation, "test": test}
    arguments = {"target": target, "seed": seed}
    fitting, decisions = prepare(given, arguments, FitCall(chosen))
    if model is None:
        subject, found = _multimodal(fitting, names, os.fspath(data_dir))
    else:
        subject, found = _vision_text(fitting, os.fspath(model))
    size = subject.loop.batch_size
    count, more = choose_devices(size, devices, present=False)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((size // count, *x.shape[1:]), x.dtype),
        subject.example,
    )
    module = subject.module
    memory = estimate_memory(
        module.params,
        module.frozen,
        subject.loss_fn,
        fit_optimizer(subject.loop.num_steps, module.params, chosen.weights),
        batch,
    )
    if subject.sharded:
        memory = dataclasses.replace(
            memory,
            **{
                name: math.ceil(getattr(memory, name) / count)
                for name in ("parameters", "frozen", "gradients", "optimizer")
            },
        )
    return Outline(
        (*decisions, *found, *more),
        _count(module.params),
        _count(module.frozen),
        subject.loop.num_steps,
        size,
        count,
        memory,
        subject.sample_bytes,
    )


def _multimodal(
    fitting: Fitting, encoders: Mapping[str, str], data_dir: str
) -> tuple[_Subject, list[Decision]]:
    made, decisions = plan_multimodal(fitting, encoders, data_dir)
    columns, parts = fitting.columns, fitting.parts
    names = class_names_of(parts["train"])
    reader = InputReader(made.inputs, columns.kind, columns.modalities)
    tried = _first_of_each(parts["train"], columns.modalities)
    loaded = load_samples(
        tried,
        columns.kind,
        columns.modalities,
        names,
        made.inputs.image_size,
        Unreadable(len(tried)),
    )
    if not loaded.kept:
        raise ValueError(f"{fitting.name}: none of {len(tried)} samples can be read")
    shapes = reader.shapes(loaded.arrays)
    if made.model.readout:
        outputs = len(names) if columns.kind == "classify" else 1
        rows = len(loaded.kept)
        shapes["read"] = jax.ShapeDtypeStruct((rows, outputs), jnp.float32)
    inputs = reader.without_samples(names)
    create = model_factory(made.model, inputs)
    model = nnx.eval_shape(lambda: create(jax.random.key(0)))
    module = split_multimodal(model, made.model.trainable)
    each = sum(
        math.prod(x.shape[1:]) * x.dtype.itemsize for x in jax.tree.leaves(shapes)
    )
    return _Subject(
        module,
        multimodal_loss_fn(module, inputs),
        shapes,
        made.loop,
        each * sum(map(len, parts.values())),
        sharded=False,
    ), decisions


def _first_of_each(
    samples: Sequence[Sample], modalities: Sequence[str]
) -> list[Sample]:
    """Returns a few samples of each modality."""
    found: dict[int, Sample] = {}
    for modality in modalities:
        has = (
            i
            for i, x in enumerate(samples)
            if modality in x.media or (modality == "text" and x.fields.reads)
        )
        for i in list(has)[:_MAX_OPENED]:
            found[i] = samples[i]
    return list(found.values())


def _vision_text(fitting: Fitting, weights: str) -> tuple[_Subject, list[Decision]]:
    planned, decisions = plan_vision_text(fitting, weights)
    config = planned.model
    made = architecture(config)
    prepared = read_preprocessing(config)
    kind = kind_of(made)

    def build() -> nnx.Module:
        model = kind.module(made, rngs=nnx.Rngs(0))
        add_lora(model, config.lora, rngs=nnx.Rngs(0))
        return model

    module = split_module(nnx.eval_shape(build), trainable_filter(config.trainable))
    size = prepared.fit.size
    example: dict[str, Any] = {
        "image": jax.ShapeDtypeStruct((1, size, size, 3), np.uint8),
        "text": jax.ShapeDtypeStruct((1, prepared.text_length), jnp.int32),
    }
    if kind is not CONTRASTIVE:
        assert prepared.prompts is not None
        length = prepared.prompts([""]).shape[1]
        example["prompt"] = jax.ShapeDtypeStruct((1, length), jnp.int32)
    loss_fn = image_text_loss(module, config.loss)
    return _Subject(module, loss_fn, example, planned.loop, 0, True), decisions


def _count(tree: PyTree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
