"""Fits a multimodal model on top of pretrained encoders."""

import dataclasses
import functools
import logging
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.data.preprocessing.pictures import Unreadable, UnreadableFilesError
from meta_opt.data.sources.sample_task import LoadedSamples, load_samples
from meta_opt.parallel.mesh import MeshConfig
from meta_opt.parallel.processes import arrays_from_first, check_alike
from meta_opt.predictor.answers import answers_of
from meta_opt.predictor.backend import MultimodalBackend
from meta_opt.predictor.columns import Columns
from meta_opt.predictor.decision import Decision, log_decisions
from meta_opt.predictor.devices import choose_devices
from meta_opt.predictor.fitted import Fitted
from meta_opt.predictor.fitting import Fitting
from meta_opt.predictor.plan import MultimodalPlan, make_plan
from meta_opt.predictor.rows import class_names_of
from meta_opt.predictor.training import train
from meta_opt.types import from_config
from meta_opt.workloads.multimodal import multimodal_workload
from meta_opt.workloads.multimodal_inputs import InputReader, Inputs, inputs_of
from meta_opt.workloads.multimodal_model import build_multimodal
from meta_opt.workloads.readout import with_means, with_readout

_log = logging.getLogger(__name__)

_MAX_UNREADABLE = 0.2
"""Maximum fraction of samples with unreadable files."""


def fit_multimodal(
    fitting: Fitting, encoders: Mapping[str, str], data_dir: str = ""
) -> Fitted:
    """Plans, reads the samples, trains and evaluates.

    Args:
        fitting: the input of the fit.
        encoders: names of `meta_opt.models.encoders`, by modality.
        data_dir: folder of encoders, see `InputsConfig.data_dir`.

    Raises:
        ValueError: too many files that cannot be read, or a time limit that is too
            short.
        MissingDataError: an encoder that is not prepared.
    """
    columns, clock = fitting.columns, fitting.call.clock
    plan, decisions = plan_multimodal(fitting, encoders, data_dir)
    devices, found = choose_devices(plan.loop.batch_size, fitting.call.devices)
    # The model is small enough to be replicated on each device.
    plan = dataclasses.replace(plan, mesh=MeshConfig(data=devices))
    decisions = [*decisions, *found]
    log_decisions(decisions)
    loaded, names, found = _load(fitting, plan.inputs.image_size)
    decisions += found
    seconds = {"reading": clock.spent()}
    _log.info("read %s in %.1f s", fitting.name, clock.spent())
    reader = InputReader(plan.inputs, columns.kind, columns.modalities)
    inputs = inputs_of(reader, {split: part.arrays for split, part in loaded.items()})
    if plan.model.readout:
        inputs = with_means(inputs)
    columns, training, found = _standardised(columns, inputs)
    decisions += found
    if plan.model.readout:
        training = with_readout(training)
    seconds["encoding"] = clock.spent() - sum(seconds.values())
    _log.info("encoded in %.1f s", seconds["encoding"])
    module = build_multimodal(plan.model, training, fitting.seed)
    module = module._replace(params=arrays_from_first(module.params))
    workload = multimodal_workload(module, training, fitting.name)
    trained = train(workload, plan, fitting.call)
    seconds["training"] = clock.spent() - sum(seconds.values())
    model = module.merge(trained.params, trained.frozen)
    backend = MultimodalBackend(
        jax.tree.map(jnp.asarray, model),
        columns,
        plan.inputs,
        plan.model,
        names,
        reader,
    )
    split = fitting.answered
    arrays = inputs.splits[split]
    metrics = {
        s: backend.evaluate_arrays(x, inputs.captions[s])
        for s, x in inputs.splits.items()
        if s != "train"
    }
    outputs = backend.outputs_of(arrays)
    answers = answers_of(columns.kind, loaded[split].kept, outputs, names)
    without = _without(backend, inputs, split)
    seconds["testing"] = clock.spent() - sum(seconds.values())
    return Fitted(
        backend=backend,
        columns=columns,
        class_names=names,
        decisions=[*decisions, *trained.decisions],
        trained=trained,
        metric=plan.metric,
        metrics=metrics,
        answers=answers,
        without=without,
        seconds=seconds,
    )


def plan_multimodal(
    fitting: Fitting, encoders: Mapping[str, str], data_dir: str = ""
) -> tuple[MultimodalPlan, list[Decision]]:
    """Makes a plan, or returns the plan that an interrupted call recorded.

    Args:
        fitting: the input of the fit.
        encoders: names of `meta_opt.models.encoders`, by modality.
        data_dir: folder of encoders, see `InputsConfig.data_dir`.

    Raises:
        MissingDataError: an encoder that is not prepared.
    """
    plan, decisions = fitting.call.record.decide(
        "plan",
        lambda: make_plan(fitting, encoders, data_dir),
        dataclasses.asdict,
        functools.partial(from_config, MultimodalPlan),
    )
    # The folder of encoders may have moved since the interruption.
    inputs = dataclasses.replace(plan.inputs, data_dir=data_dir)
    return dataclasses.replace(plan, inputs=inputs), decisions


def _load(
    fitting: Fitting, side: int
) -> tuple[dict[str, LoadedSamples], tuple[str, ...], list[Decision]]:
    """Reads all files; the decisions give the number of unreadable ones."""
    parts, columns, name = fitting.parts, fitting.columns, fitting.name
    names = class_names_of(parts["train"])
    total = sum(map(len, parts.values()))
    most = int(_MAX_UNREADABLE * total)
    unreadable = Unreadable(most)
    try:
        loaded = {
            split: load_samples(
                part, columns.kind, columns.modalities, names, side, unreadable, split
            )
            for split, part in parts.items()
        }
        # Several samples may have the same file.
        count = total - sum(len(part.kept) for part in loaded.values())
    except UnreadableFilesError:
        count = total
    first, reason = next(iter(unreadable.reasons.items()), ("", ""))
    if count > most:
        raise ValueError(
            f"{name}: more than {_MAX_UNREADABLE:.0%} of {total} samples have a file "
            f"that cannot be read, such as {first} ({reason})"
        )
    check_alike({k: len(part.kept) for k, part in loaded.items()}, "readable files")
    decisions = []
    if count:
        about = (
            f"of {total} samples, such as {first} ({reason}); at most "
            f"{_MAX_UNREADABLE:.0%} may be unreadable"
        )
        decisions.append(Decision("unreadable_left_out", count, about))
    for split, part in loaded.items():
        if not part.kept:
            raise ValueError(f"{name}: no sample of {split} can be read")
    if columns.kind == "classify":
        counts = np.bincount(loaded["train"].arrays.label, minlength=len(names))
        if lost := [n for n, c in zip(names, counts, strict=True) if not c]:
            raise ValueError(
                f"{name}: no training sample can be read of the classes "
                f"{', '.join(lost)}"
            )
    return loaded, names, decisions


def _standardised(
    columns: Columns, inputs: Inputs
) -> tuple[Columns, Inputs, list[Decision]]:
    """Centers the scores and divides them by their root mean square.

    If both signs occur, the sign may be meaningful, and the center is 0.
    """
    if columns.kind != "score":
        return columns, inputs, []
    scores = inputs.splits["train"]["score"].astype(np.float64)
    signed = scores.min() < 0 < scores.max()
    center = 0.0 if signed else float(scores.mean())
    scale = float(np.sqrt(np.mean((scores - center) ** 2))) or 1.0
    about = (
        f"{len(scores)} training scores from {scores.min():.4g} to {scores.max():.4g}"
        + (", of both signs" if signed else "")
    )
    found = [
        Decision("score_center", center, about),
        Decision(
            "score_scale", scale, f"{about}; their root mean square around the center"
        ),
    ]
    scaled = {
        split: arrays | {"score": ((arrays["score"] - center) / scale)}
        for split, arrays in inputs.splits.items()
    }
    columns = dataclasses.replace(columns, center=center, scale=scale)
    return columns, inputs._replace(splits=scaled), found


def _without(
    backend: MultimodalBackend, inputs: Inputs, split: str
) -> dict[str, dict[str, float]]:
    """Returns metrics without each modality in turn; none for retrieval."""
    if len(inputs.modalities) < 2 or inputs.kind == "retrieve":
        return {}
    found = {}
    arrays = inputs.splits[split]
    for modality in inputs.modalities:
        name = f"{modality}_present"
        masked = arrays | {name: np.zeros_like(arrays[name])}
        found[modality] = backend.evaluate_arrays(
            masked, inputs.captions[split], write=False
        )
    return found
