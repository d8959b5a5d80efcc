"""From a user's data to a trained model, in one call."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from meta_opt.data.preprocessing.pictures import Unreadable, UnreadableFilesError
from meta_opt.data.sources.sample_schema import Sample
from meta_opt.data.sources.sample_task import LoadedSamples, load_samples
from meta_opt.evaluators.multimodal import multimodal_evaluation, multimodal_outputs
from meta_opt.predictor.answers import answers_of
from meta_opt.predictor.columns import Columns, find_columns
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.plan import ENCODERS, make_plan
from meta_opt.predictor.predictor import Predictor, Record
from meta_opt.predictor.presets import Preset, find_preset
from meta_opt.predictor.rows import to_samples
from meta_opt.predictor.splits import check_enough, hold_out, without_unknown
from meta_opt.predictor.table import Data, Table, read_table
from meta_opt.predictor.training import Clock, train
from meta_opt.types import PyTree, check_keys
from meta_opt.workloads.multimodal import multimodal_workload
from meta_opt.workloads.multimodal_inputs import InputReader, Inputs, inputs_of
from meta_opt.workloads.multimodal_model import build_multimodal

_log = logging.getLogger(__name__)

_MAX_UNREADABLE = 0.2
"""Share of the samples whose files may be unreadable."""
_RUN = "run"


def fit(
    data: Data,
    target: str | None = None,
    *,
    validation: Data | None = None,
    test: Data | None = None,
    preset: str | Preset = "good",
    encoders: Mapping[str, str] | None = None,
    time_limit: float | None = None,
    workdir: str | os.PathLike | None = None,
    seed: int = 0,
    data_dir: str | os.PathLike = "",
    progress: bool = True,
) -> Predictor:
    """Trains a model on a user's samples; all that is not given is chosen.

    Pretrained encoders of what the samples have (pictures, sounds, clips, texts) are
    joined and fine-tuned by the learned optimizer, for classes, a score, a text that is
    to be written, or, without a target, for pictures and texts that are to be found by
    each other. Every choice and its reason is in `Predictor.decisions`.

    Args:
        data: a JSONL or CSV file, a folder with a sub-folder for each class, WebDataset
            tar files, a pandas DataFrame or a list of dictionaries. Paths in a file are
            relative to it. A column ``split`` of ``train``, ``validation`` and ``test``
            is kept to.
        target: name of the column that is to be predicted; None to find it.
        validation: held-out samples that choose the model, in any of these forms; None
            holds out a share of each class.
        test: held-out samples that choose nothing; None as for ``validation``.
        preset: ``fast``, ``good`` or ``best``, or settings of your own, see
            `meta_opt.predictor.presets`.
        encoders: by modality, names of `meta_opt.models.encoders` in place of those
            that are chosen.
        time_limit: seconds that the call may take; None for what the preset takes.
        workdir: a new folder for logs, ``decisions.json`` and the predictor; None for
            none.
        seed: of initialisation and order.
        data_dir: the folder of pretrained encoders; "" for $META_OPT_DATA_DIR, else
            ``data``.
        progress: whether to show bars on a terminal.

    Raises:
        ValueError: data that nothing can be learned from, which the message says, or a
            time limit that is too short.
        FileNotFoundError: no such file.
        MissingDataError: encoders that are not prepared; it names the command.

    Example:
        >>> import meta_opt
        >>> predictor = meta_opt.fit("samples.jsonl")  # doctest: +SKIP
        >>> predictor.evaluate("more.jsonl")["accuracy"]  # doctest: +SKIP
        0.93
    """
    clock = Clock(time_limit)
    check_keys("encoders", encoders or {}, ENCODERS)
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"time_limit={time_limit} must be above 0 seconds")
    chosen = find_preset(preset)
    preset = preset if isinstance(preset, str) else "own"
    folder = None if workdir is None else _new_folder(Path(workdir))
    decisions: list[Decision] = [Decision("preset", preset, "as given")]
    table = read_table(data)
    columns, found = find_columns(table, target)
    decisions += found
    parts, found = _divided(table, columns, {"validation": validation, "test": test})
    decisions += found
    plan, found = make_plan(
        parts,
        columns.kind,
        columns.modalities,
        chosen,
        {**ENCODERS, **(encoders or {})},
        os.fspath(data_dir),
        seed,
    )
    decisions += found
    loaded, names, found = _load(parts, columns, plan.inputs.image_size, table.name)
    decisions += found
    _log.info("read %s in %.1f s", table.name, clock.spent())
    seconds = {"reading": clock.spent()}
    reader = InputReader(plan.inputs, columns.kind, columns.modalities)
    samples = {split: part.arrays for split, part in loaded.items()}
    inputs = inputs_of(reader, samples)
    seconds["encoding"] = clock.spent() - sum(seconds.values())
    module = build_multimodal(plan.model, inputs, seed)
    workload = multimodal_workload(module, inputs, table.name)
    run_folder = None if folder is None else folder / _RUN
    trained = train(workload, plan, chosen, clock, run_folder, progress)
    decisions += trained.decisions
    seconds["training"] = clock.spent() - sum(seconds.values())
    model = module.merge(trained.params, trained.frozen)
    model = jax.tree.map(jax.numpy.asarray, model)
    answered = "test" if "test" in inputs.splits else "validation"
    metrics = {"validation": trained.validation}
    if answered == "test":
        metrics["test"] = _evaluate(model, inputs, "test", inputs.splits["test"])
    outputs = multimodal_outputs(
        model,
        inputs.kind,
        inputs.modalities,
        inputs.splits[answered],
        max_tokens=plan.inputs.caption_length,
    )
    record = Record(
        source=table.name,
        preset=preset,
        metric=plan.metric,
        metrics=metrics,
        history=trained.result.history,
        actions=trained.result.actions,
        answers=answers_of(
            inputs.kind, loaded[answered].kept, outputs, names, inputs.tokenizer
        ),
        answered=answered,
        without=_without(model, inputs, answered),
        seconds={
            **seconds,
            "testing": clock.spent() - sum(seconds.values()),
            "compiling": trained.result.compile_seconds,
            "a_step": trained.seconds,
            "in_all": clock.spent(),
        },
    )
    predictor = Predictor(
        model, columns, plan.inputs, plan.model, names, decisions, record
    )
    if folder is not None:
        predictor.save(folder)
    return predictor


def _new_folder(folder: Path) -> Path:
    if (folder / _RUN).exists():
        raise ValueError(
            f"workdir={str(folder)!r} has a run already: take another one, or "
            "Predictor.load it"
        )
    return folder


def _divided(
    table: Table, columns: Columns, others: Mapping[str, Data | None]
) -> tuple[dict[str, list[Sample]], list[Decision]]:
    """Samples by split, and what was decided about them."""
    decisions = []
    given = {}
    converted = to_samples(table, columns)
    for count, what in (
        (converted.without_target, f"no {columns.target!r}"),
        (converted.without_input, f"none of {', '.join(columns.modalities)}"),
    ):
        if count:
            reason = f"{count} of {len(table.rows)} samples have {what}"
            decisions.append(Decision("left_out", count, reason))
    for split, data in others.items():
        if data is not None:
            other = read_table(data, split)
            _check_target(other, columns)
            given[split] = to_samples(other, columns).samples
            if not given[split]:
                raise ValueError(f"{split}: none of its samples has target and input")
    check_enough(converted.samples, columns.kind, table.name)
    parts, found = hold_out(converted.samples, columns.kind, given)
    decisions += found
    parts, found = without_unknown(parts, columns.kind, columns.modalities)
    decisions += found
    if not parts["validation"]:
        raise ValueError("no validation sample is left; see the classes of training")
    return {split: part for split, part in parts.items() if part}, decisions


def _check_target(table: Table, columns: Columns) -> None:
    if columns.target and columns.target not in table.columns():
        raise ValueError(
            f"{table.name} has no column {columns.target!r}, the target (columns: "
            f"{', '.join(table.columns())})"
        )


def _load(
    parts: Mapping[str, Sequence[Sample]],
    columns: Columns,
    side: int,
    name: str,
) -> tuple[dict[str, LoadedSamples], tuple[str, ...], list[Decision]]:
    """Reads all files, and says how many cannot be read."""
    labels = {s.fields.label for s in parts["train"]}
    names = tuple(sorted(str(x) for x in labels if x is not None))
    total = sum(map(len, parts.values()))
    unreadable = Unreadable(int(_MAX_UNREADABLE * total))
    logger = logging.getLogger("meta_opt.data.preprocessing.pictures")
    level = logger.level
    logger.setLevel(logging.ERROR)  # They are counted below.
    try:
        loaded = {
            split: load_samples(
                part, columns.kind, columns.modalities, names, side, unreadable, split
            )
            for split, part in parts.items()
        }
    except UnreadableFilesError:
        first, reason = next(iter(unreadable.reasons.items()))
        raise ValueError(
            f"{name}: more than {_MAX_UNREADABLE:.0%} of {total} samples have a file "
            f"that cannot be read, such as {first} ({reason})"
        ) from None
    finally:
        logger.setLevel(level)
    decisions = []
    if count := len(unreadable.reasons):
        first, reason = next(iter(unreadable.reasons.items()))
        about = f"of {total} samples, such as {first} ({reason}); at most 20% may be"
        decisions.append(Decision("unreadable_left_out", count, about))
    for split, part in loaded.items():
        if not part.kept:
            raise ValueError(f"{name}: no sample of {split} can be read")
    if columns.kind == "classify":
        there = np.bincount(loaded["train"].arrays.label, minlength=len(names))
        if lost := [n for n, c in zip(names, there, strict=True) if not c]:
            raise ValueError(
                f"{name}: no training sample can be read of the classes "
                f"{', '.join(lost)}"
            )
    return loaded, names, decisions


def _evaluate(
    model: Any, inputs: Inputs, split: str, arrays: dict[str, PyTree]
) -> dict[str, float]:
    return multimodal_evaluation(
        inputs.kind,
        inputs.modalities,
        arrays,
        inputs.captions[split],
        inputs.tokenizer,
        write=True,
    )(model)


def _without(model: Any, inputs: Inputs, split: str) -> dict[str, dict[str, float]]:
    """Metrics where one modality is left out; of pairs, both are needed."""
    if len(inputs.modalities) < 2 or inputs.kind == "retrieve":
        return {}
    found = {}
    arrays = inputs.splits[split]
    for modality in inputs.modalities:
        name = f"{modality}_present"
        masked = arrays | {name: np.zeros_like(arrays[name])}
        metrics = multimodal_evaluation(
            inputs.kind,
            inputs.modalities,
            masked,
            inputs.captions[split],
            inputs.tokenizer,
        )(model)
        found[modality] = metrics
    return found
