"""From a user's data to a trained model, in one call."""

import os
from collections.abc import Mapping
from pathlib import Path

from meta_opt.compilation_cache import use_compilation_cache
from meta_opt.data.sources.sample_schema import Sample
from meta_opt.predictor.columns import Columns, find_columns
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.fitted import Fitting
from meta_opt.predictor.multimodal_fit import fit_multimodal
from meta_opt.predictor.plan import ENCODERS
from meta_opt.predictor.predictor import Predictor, Record
from meta_opt.predictor.presets import Preset, find_preset
from meta_opt.predictor.rows import to_samples
from meta_opt.predictor.splits import check_enough, hold_out, without_unknown
from meta_opt.predictor.table import Data, Table, read_table
from meta_opt.predictor.training import Clock
from meta_opt.predictor.vision_text_fit import fit_vision_text
from meta_opt.types import check_keys

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

    Compiled programs are stored for later calls and processes, see
    `meta_opt.compilation_cache`.

    Args:
        data: a JSONL or CSV file, a folder with a sub-folder for each class, WebDataset
            tar files, a pandas DataFrame or a list of dictionaries. Paths in a file are
            relative to it. A column ``split`` of ``train``, ``validation`` and ``test``
            is kept to.
        target: name of the column that is to be predicted; None to find it.
        validation: held-out samples that choose the model, in any of these forms; None
            holds out a share of each class.
        test: held-out samples that choose nothing; None as for ``validation``.
        model: a CLIP, SigLIP or PaliGemma folder, or weights that
            `meta_opt.load_exported` takes, which is trained in place of the encoders
            that ship here: for pairs a contrastive one, for texts a generative one.
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
    if model is not None and encoders:
        raise ValueError(f"model={str(model)!r} has its own encoders; leave them out")
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"time_limit={time_limit} must be above 0 seconds")
    chosen = find_preset(preset)
    preset = preset if isinstance(preset, str) else "own"
    use_compilation_cache()
    folder = None if workdir is None else _new_folder(Path(workdir))
    decisions: list[Decision] = [Decision("preset", preset, "as given")]
    table = read_table(data)
    columns, found = find_columns(table, target)
    decisions += found
    parts, found = _divided(table, columns, {"validation": validation, "test": test})
    decisions += found
    fitting = Fitting(
        parts,
        columns,
        table.name,
        chosen,
        clock,
        seed,
        None if folder is None else folder / _RUN,
        progress,
    )
    if model is None:
        names = {**ENCODERS, **(encoders or {})}
        fitted = fit_multimodal(fitting, names, os.fspath(data_dir))
    else:
        fitted = fit_vision_text(fitting, os.fspath(model))
    decisions += fitted.decisions
    result = fitted.trained.result
    record = Record(
        source=table.name,
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
