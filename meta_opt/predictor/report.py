"""The report of a fit: metrics, curves, errors with their media, decisions."""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.data.preprocessing.audio_files import read_clip
from meta_opt.data.preprocessing.images import decode, decode_frames
from meta_opt.data.preprocessing.pictures import MAX_PIXELS
from meta_opt.data.sources.sample_schema import Media
from meta_opt.data.sources.sample_task import FRAMES
from meta_opt.error_messages import truncate
from meta_opt.metrics.intervals import wilson
from meta_opt.predictor.answers import Answer
from meta_opt.predictor.columns import Columns
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.record import Record
from meta_opt.reporting.decisions import plot_decisions
from meta_opt.reporting.page import data_uri, render_page
from meta_opt.reporting.training import plot_training
from meta_opt.reporting.wrong_answers import (
    ShownAnswer,
    choose_wrong,
    picture_uri,
    sound_uri,
)

TEMPLATE = Path(__file__).parent / "report.html"
_MAX_ANSWERS = 24
"""Maximum number of answers on the page."""
_MAX_CLASSES = 25
"""Maximum number of classes in the confusion matrix."""
_SOUND_RATE, _SOUND_SECONDS = 16_000, 10.0
_MAX_CHARACTERS = 160
"""Maximum number of characters of a text on the page."""


def write_predictor_report(
    path: str | os.PathLike,
    record: Record,
    columns: Columns,
    class_names: Sequence[str],
    decisions: Sequence[Decision],
) -> None:
    """Writes an HTML page with embedded images and audio.

    Files of wrong answers that no longer exist are shown as missing.

    Args:
        path: HTML file, written atomically.
        record: record of the fit.
        columns: roles of the columns of the user's data.
        class_names: names of the K classes; empty for other tasks.
        decisions: chosen settings with reasons.
    """
    answered = list(record.answers)
    splits = list(record.metrics)
    with tempfile.TemporaryDirectory() as folder:
        curves, controller = Path(folder) / "curves.png", Path(folder) / "decided.png"
        best = next((d.value for d in decisions if d.name == "best_step"), 0)
        plot_training(curves, record.history, record.metric, best)
        decided = plot_decisions(controller, record.history)
        charts = {
            "curves": data_uri(curves.read_bytes()),
            "controller": data_uri(controller.read_bytes()) if decided else "",
        }
    title, about, shown = _shown(columns.kind, answered, record.answered)
    names = dict.fromkeys(name for m in record.metrics.values() for name in m)
    without_names, without = _without(record)
    render_page(
        Path(path),
        TEMPLATE,
        title=f"Predictor of {Path(record.source).name}",
        summary=_summary(record, columns, len(class_names)),
        splits=splits,
        metrics={
            name: [_number(record.metrics[split].get(name)) for split in splits]
            for name in names
        },
        interval=_interval(columns.kind, answered, record.answered),
        answered=record.answered,
        without_names=without_names,
        without=without,
        confusion=_confusion(answered) if columns.kind == "classify" else None,
        shown=[_with_media(one) for one in shown],
        shown_title=title,
        shown_about=about,
        actions=record.actions,
        decisions=decisions,
        seconds="Seconds: "
        + ", ".join(
            f"{name.replace('_', ' ')} {value:.3g}"
            for name, value in record.seconds.items()
        ),
        **charts,
    )


def _summary(record: Record, columns: Columns, classes: int) -> str:
    what = {
        "classify": f"distinguishes {classes} classes",
        "score": "predicts a number",
        "retrieve": "matches images and texts",
        "caption": "generates a text",
    }[columns.kind]
    target = f" ({columns.target!r})" if columns.target else ""
    return (
        f"It {what}{target} from {', '.join(columns.modalities)}; trained on "
        f"{record.source} with the preset {record.preset!r} in "
        f"{record.seconds.get('in_all', math.nan):.0f} seconds. It has the parameters "
        f"with the best validation {record.metric}."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(kind: str, answered: Sequence[Answer], split: str) -> str:
    if kind != "classify" or not answered:
        return ""
    right = wilson(sum(one.correct for one in answered), len(answered))
    return (
        f"Accuracy on {len(answered)} {split} samples: {right.mean:.1%}, 95% interval "
        f"{right.low or 0:.1%} to {right.high or 0:.1%}."
    )


def _without(record: Record) -> tuple[list[str], dict[str, list[str]]]:
    if not record.without:
        return [], {}
    names = list(next(iter(record.without.values())))
    rows = {"nothing": record.metrics[record.answered], **record.without}
    return names, {
        modality: [_number(metrics.get(name)) for name in names]
        for modality, metrics in rows.items()
    }


def _confusion(answered: Sequence[Answer]) -> dict[str, Any]:
    """Returns a confusion matrix of the largest classes; rows are labels."""
    labels = [one.label for one in answered]
    every = sorted({*labels, *(one.prediction for one in answered)})
    most = sorted(every, key=lambda name: (-labels.count(name), name))[:_MAX_CLASSES]
    names = sorted(most)
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), int)
    for one in answered:
        if one.label in place and one.prediction in place:
            counts[place[one.label], place[one.prediction]] += 1
    about = "Rows: true classes; columns: predicted classes."
    if len(every) > len(names):
        about += f" The {len(names)} most frequent of {len(every)} classes."
    rows = []
    for i, name in enumerate(names):
        total = max(int(counts[i].sum()), 1)
        rows.append(
            {
                "name": name,
                "cells": [
                    {"count": int(n), "colour": _colour(n / total, i == j)}
                    for j, n in enumerate(counts[i])
                ],
            }
        )
    return {"about": about, "columns": names, "rows": rows}


def _colour(share: float, right: bool) -> str:
    hue = 205 if right else 20
    return f"hsl({hue} 80% {100 - 45 * share:.0f}%)" if share else "transparent"


def _shown(
    kind: str, answered: Sequence[Answer], split: str
) -> tuple[str, str, list[Answer]]:
    """Returns heading, explanation, and the answers to show."""
    if kind == "score":
        worst = sorted(answered, key=lambda one: -one.error)[:_MAX_ANSWERS]
        return "Largest errors", f"Of {len(answered)} {split} samples.", worst
    if kind == "caption":
        return (
            "Generated texts",
            f"Some of {len(answered)} {split} samples.",
            [*answered[:_MAX_ANSWERS]],
        )
    wrong = sum(not one.correct for one in answered)
    about = (
        f"{wrong} of {len(answered)} {split} samples are wrong; these are the most "
        "confident ones, each with the correct answer, then the prediction."
    )
    return "Wrong answers", about, choose_wrong(answered, _MAX_ANSWERS)


def _with_media(answer: Answer) -> ShownAnswer:
    image = _read(answer.media.get("image"), lambda x: np.asarray(_decoded(x)))
    if image is None:
        image = _read(answer.media.get("video"), _middle_frame)
    clip = _read(
        answer.media.get("audio"), lambda x: read_clip(x, _SOUND_RATE, _SOUND_SECONDS)
    )
    return ShownAnswer(
        example=Path(answer.example).name,
        label=truncate(answer.label, _MAX_CHARACTERS),
        prediction=truncate(answer.prediction, _MAX_CHARACTERS),
        confidence=answer.confidence,
        text=truncate(answer.text, _MAX_CHARACTERS),
        picture=picture_uri(image),
        sound="" if clip is None else sound_uri(clip, _SOUND_RATE),
    )


def _read(
    media: Media | None, make: Callable[[bytes], np.ndarray | None]
) -> np.ndarray | None:
    """Returns ``make`` of a file's contents; None if the file cannot be read."""
    if media is None:
        return None
    try:
        return make(media.read())
    except (OSError, ValueError):
        return None


def _decoded(data: bytes) -> Any:
    return decode(data, MAX_PIXELS)


def _middle_frame(data: bytes) -> np.ndarray:
    frames = decode_frames(data, FRAMES, MAX_PIXELS, repeat=True)
    return np.asarray(frames[FRAMES // 2])
