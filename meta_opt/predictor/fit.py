"""Fits a model to a user's data in one call."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from meta_opt.compilation_cache import use_compilation_cache
from meta_opt.data.sources.sample_schema import Sample
from meta_opt.parallel.processes import any_process, barrier, check_alike, check_shared
from meta_opt.predictor.call_record import FILE as CALL
from meta_opt.predictor.call_record import CallRecord, fingerprint
from meta_opt.predictor.columns import Columns, find_columns
from meta_opt.predictor.decision import Decision, log_decisions
from meta_opt.predictor.fitting import Clock, FitCall, Fitting
from meta_opt.predictor.multimodal_fit import fit_multimodal
from meta_opt.predictor.plan import encoders_of
from meta_opt.predictor.predictor import FILE, Predictor
from meta_opt.predictor.presets import Preset, find_preset
from meta_opt.predictor.record import Record
from meta_opt.predictor.rows import to_samples
from meta_opt.predictor.splits import (
    check_enough,
    hold_out,
    trained_columns,
    without_unknown,
)
from meta_opt.predictor.table import Data, Table, read_table
from meta_opt.predictor.vision_text_fit import fit_vision_text
from meta_opt.types import from_config

_RUN = "run"


def fit(
    data: Data,
    target: str | None = None,
    *,
    validation: Data | None = None,
    test: Data | None = None,
    model: str | os.PathLike | None = None,
    preset: str | Preset = "good",
    encoders: Mapping[str, str] | None = None,
    time_limit: float | None = None,
    devices: int | None = None,
    workdir: str | os.PathLike | None = None,
    seed: int = 0,
    data_dir: str | os.PathLike = "",
    progress: bool = True,
) -> Predictor:
    """Trains a model on samples, and chooses all settings that are not given.

    Pretrained encoders for the modalities of the samples (images, audio, video,
    text) are combined and fine-tuned with the learned optimizer. The task is
    classification, regression, text generation or, without a target, retrieval of
    images and texts. `Predictor.decisions` lists each choice and its reason.

    Compiled programs are stored for later calls and processes, see
    `meta_opt.compilation_cache`.

    Several processes joined by `meta_opt.parallel.processes.start_processes`, all with
    the same arguments and data, train one model on all of their devices. Each returns
    the predictor; the first one writes to ``workdir``, which all must be able to
    access.

    Args:
        data: a JSONL or CSV file, a folder with a sub-folder for each class, WebDataset
            tar files, a pandas DataFrame or a list of dictionaries. Paths in a file are
            relative to it. A column ``split`` with ``train``, ``validation`` and
            ``test`` is respected.
        target: name of the column to predict; inferred if None.
        validation: validation samples, which select the model, in any of these forms;
            None holds out a share of ``data``.
        test: test samples, used for the final metrics only; None as for
            ``validation``.
        model: a CLIP, SigLIP or PaliGemma folder, or weights that
            `meta_opt.load_exported` takes, to train instead of the encoders: a
            contrastive model for retrieval, a generative one for text generation.
        preset: ``fast``, ``good`` or ``best``, or your own settings, see
            `meta_opt.predictor.presets`.
        encoders: names of `meta_opt.models.encoders` by modality, instead of the
            default ones.
        time_limit: seconds for the whole call; None or infinity for no limit.
        devices: maximum number of devices; None for all accelerators, or one CPU.
            Batches are divided over them and, with ``model``, the parameters are
            sharded too. Several processes use all of their devices.
        workdir: folder for logs, checkpoints and the predictor; None for none. After an
            interruption the same call resumes and returns the same predictor as an
            uninterrupted call; ``time_limit`` restarts. If the call had finished, its
            predictor is loaded.
        seed: random seed of initialisation and data order, from 0.
        data_dir: folder of pretrained encoders; "" for $META_OPT_DATA_DIR, or ``data``
            if that is not set.
        progress: whether to show progress bars on a terminal.

    Raises:
        ValueError: unsuitable data, a time limit that is too short, a negative seed, or
            a ``workdir`` of a call with other arguments or data; the message names the
            problem.
        TypeError: a target that is not a string, a time limit or seed that is not a
            number.
        FileNotFoundError: a file that does not exist.
        MissingDataError: encoders that are not prepared; the message has the command.
        Interrupted: on SIGINT or SIGTERM during training.

    Example:
        >>> import meta_opt
        >>> predictor = meta_opt.fit("samples.jsonl")  # doctest: +SKIP
        >>> predictor.evaluate("more.jsonl")["accuracy"]  # doctest: +SKIP
        0.93
    """
    clock = Clock(time_limit)
    names = encoders_of(encoders, model)
    if not isinstance(time_limit, int | float | None):
        raise TypeError(f"time_limit={time_limit!r} must be a number of seconds")
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"time_limit={time_limit} must be above 0 seconds")
    chosen = find_preset(preset)
    preset = preset if isinstance(preset, str) else "own"
    use_compilation_cache()
    folder = None if workdir is None else Path(workdir)
    arguments = {
        "target": target,
        "model": None if model is None else os.fspath(model),
        "preset": dataclasses.asdict(chosen),
        "encoders": dict(encoders or {}),
        "time_limit": time_limit,
        "seed": seed,
    }
    given = {"data": data, "validation": validation, "test": test}
    run_folder = None if folder is None else folder / _RUN
    call = FitCall(chosen, clock, run_folder, progress, devices=devices)
    fitting, decisions = prepare(given, arguments, call, folder)
    # No process may write before all have checked.
    if folder is not None and any_process((folder / FILE).is_file()):
        return Predictor.load(folder, data_dir=data_dir)
    decisions.insert(0, Decision("preset", preset, "as given"))
    log_decisions(decisions)
    if model is None:
        fitted = fit_multimodal(fitting, names, os.fspath(data_dir))
    else:
        fitted = fit_vision_text(fitting, os.fspath(model))
    decisions += fitted.decisions
    log_decisions(fitted.trained.decisions)
    result = fitted.trained.result
    record = Record(
        source=fitting.name,
        preset=preset,
        metric=fitted.metric,
        metrics=fitted.metrics,
        history=result.history,
        actions=result.actions,
        answers=fitted.answers,
        answered=fitting.answered,
        without=fitted.without,
        seconds={
            **fitted.seconds,
            "compiling": result.compile_seconds,
            "a_step": fitted.trained.seconds,
            "in_all": clock.spent(),
        },
    )
    predictor = Predictor(
        fitted.backend, fitted.columns, fitted.class_names, decisions, record
    )
    if folder is not None:
        if jax.process_index() == 0:
            predictor.save(folder)
        barrier()  # Wait until the first process has written the predictor.
    return predictor


def prepare(
    given: Mapping[str, Data | None],
    arguments: Mapping[str, Any],
    call: FitCall,
    folder: Path | None = None,
) -> tuple[Fitting, list[Decision]]:
    """Reads the tables, finds the columns and splits the samples.

    Args:
        given: ``data`` and, optionally, ``validation`` and ``test``.
        arguments: arguments of `fit` that the result depends on.
        call: limits of the call; its record is replaced by the record in ``folder``.
        folder: folder of the call; None for none.

    Returns:
        The input of a fit, and the decisions.

    Raises:
        ValueError: unsuitable data, a negative seed, or a folder that belongs to
            another call.
        TypeError: a target that is not a string, or a seed that is not an integer.
        FileNotFoundError: a file that does not exist.
    """
    target, seed = arguments["target"], arguments["seed"]
    if not isinstance(target, str | None):
        raise TypeError(
            f"target={target!r} of type {type(target).__name__} must be the name of a "
            "column, as a string"
        )
    if not isinstance(seed, int):
        raise TypeError(f"seed={seed!r} must be an integer")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed} must be from 0 to 2**63 - 1")
    tables = {
        name: read_table(data, name)
        for name, data in given.items()
        if data is not None or name == "data"
    }
    table = tables["data"]
    columns, found = find_columns(table, arguments["target"])
    prints = {}
    if folder is not None or jax.process_count() > 1:
        files = tuple(columns.media.values())
        prints = {name: fingerprint(one, files) for name, one in tables.items()}
        # Check before the processes could do different work and wait for each other.
        others = {"workdir": folder is not None, "devices": call.devices}
        check_alike([arguments, prints, others], "arguments or data")
    if folder is not None:
        check_shared(folder)
        _check_folder(folder)
    record = CallRecord(folder, arguments, prints)
    columns, decisions = record.decide(
        "columns",
        lambda: (columns, found),
        dataclasses.asdict,
        functools.partial(from_config, Columns),
    )
    parts, found = _split_samples(tables, columns, record)
    columns = trained_columns(columns, parts["train"])
    call = dataclasses.replace(call, record=record)
    fitting = Fitting(parts, columns, table.name, arguments["seed"], call)
    return fitting, [*decisions, *found]


def _check_folder(folder: Path) -> None:
    """Raises ValueError for a folder that cannot be resumed."""
    if (folder / CALL).is_file():
        return
    if any((folder / name).exists() for name in (_RUN, FILE)):
        raise ValueError(
            f"workdir={str(folder)!r} has a run or a predictor but no {CALL} with the "
            "arguments that it was created with: use another folder"
        )


def _split_samples(
    tables: Mapping[str, Table], columns: Columns, record: CallRecord
) -> tuple[dict[str, list[Sample]], list[Decision]]:
    """Returns the samples by split, and the decisions about them."""
    table = tables["data"]
    converted = to_samples(table, columns)
    given = {}
    for split, other in tables.items():
        if split != "data":
            _check_target(other, columns)
            given[split] = to_samples(other, columns).samples
            if not given[split]:
                raise ValueError(f"{split}: no sample has both a target and an input")
    every = [*converted.samples, *(x for part in given.values() for x in part)]
    place = {id(sample): i for i, sample in enumerate(every)}

    def choose() -> tuple[dict[str, list[Sample]], list[Decision]]:
        decisions = []
        for count, what in (
            (converted.without_target, f"no {columns.target!r}"),
            (converted.without_input, f"none of {', '.join(columns.modalities)}"),
        ):
            if count:
                reason = f"{count} of {len(table.rows)} samples have {what}"
                decisions.append(Decision("left_out", count, reason))
        check_enough(converted.samples, columns.kind, table.name)
        parts, found = hold_out(converted.samples, columns.kind, given)
        decisions += found
        modalities = trained_columns(columns, parts["train"]).modalities
        parts, found = without_unknown(parts, columns.kind, modalities)
        if not parts["validation"]:
            why = "; ".join(x.reason for x in found if x.name.startswith("validation"))
            raise ValueError(f"no validation sample is left: {why}")
        return {k: part for k, part in parts.items() if part}, [*decisions, *found]

    return record.decide(
        "splits",
        choose,
        lambda parts: {k: [place[id(x)] for x in part] for k, part in parts.items()},
        lambda stored: {k: [every[i] for i in part] for k, part in stored.items()},
    )


def _check_target(table: Table, columns: Columns) -> None:
    if columns.target and columns.target not in table.columns():
        raise ValueError(
            f"{table.name} has no column {columns.target!r}, the target, with values "
            f"(columns: {', '.join(table.columns())})"
        )
