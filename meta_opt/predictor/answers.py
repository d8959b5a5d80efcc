"""Predictions for held-out samples, with the correct answers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.data.sources.sample_schema import Media, Sample


@dataclasses.dataclass(frozen=True)
class Answer:
    """One held-out sample and the model's answer.

    Attributes:
        example: origin of the sample: file and line, or the name of the file.
        label: correct answer.
        prediction: answer of the model.
        correct: whether the prediction is correct; False for scores.
        confidence: probability of the prediction; None without probabilities.
        error: sort key of wrong answers; the largest errors are shown first.
        text: text of the sample.
        media: files of the sample by modality.
    """

    example: str
    label: str
    prediction: str
    correct: bool
    confidence: float | None
    error: float
    text: str
    media: dict[str, Media]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        fields = dataclasses.asdict(self)
        fields["media"] = {
            m: [str(x.file.absolute()), x.offset, x.size, x.member]
            for m, x in self.media.items()
        }
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Answer":
        """Returns the answer with these fields; the inverse of `to_json`."""
        media = {
            m: Media(Path(file), offset, size, member)
            for m, (file, offset, size, member) in fields["media"].items()
        }
        return cls(**{**fields, "media": media})


def answers_of(
    kind: str,
    samples: Sequence[Sample],
    outputs: np.ndarray,
    class_names: Sequence[str],
) -> list[Answer]:
    """Converts the outputs of `meta_opt.predictor.backend.Backend.outputs`.

    Args:
        kind: the task, one of `meta_opt.data.samples.KINDS`.
        samples: B samples with their targets.
        outputs: model outputs, [B, ...].
        class_names: names of the K classes; not used for other tasks.
    """
    labels: Sequence[str]
    confidences: list[float | None] = [None] * len(samples)
    if kind == "classify":
        labels = [str(s.fields.label) for s in samples]
        probabilities = softmax(outputs)
        predictions = [class_names[i] for i in np.argmax(outputs, axis=-1)]
        correct = [a == b for a, b in zip(labels, predictions, strict=True)]
        confidences = [float(x) for x in probabilities.max(axis=-1)]
        errors = [float(x) for x in probabilities.max(axis=-1)]
    elif kind == "score":
        scores = [float(s.fields.score or 0.0) for s in samples]
        labels = [f"{x:.4g}" for x in scores]
        predictions = [f"{x:.4g}" for x in outputs]
        errors = [abs(a - float(b)) for a, b in zip(scores, outputs, strict=True)]
        correct = [False] * len(samples)
    elif kind == "retrieve":
        labels = [s.fields.reads for s in samples]
        similarity = outputs[:, 0] @ outputs[:, 1].T
        nearest = np.argmax(similarity, axis=1)
        predictions = [labels[i] for i in nearest]
        correct = [a == b for a, b in zip(labels, predictions, strict=True)]
        confidences = [float(similarity[i, n]) for i, n in enumerate(nearest)]
        errors = [
            float(similarity[i, n] - similarity[i, i]) for i, n in enumerate(nearest)
        ]
    else:
        labels = [s.fields.target[0] for s in samples]
        predictions = list(map(str, outputs))
        correct = [
            p.strip().casefold() in {t.strip().casefold() for t in s.fields.target}
            for p, s in zip(predictions, samples, strict=True)
        ]
        errors = [0.0] * len(samples)
    return [
        Answer(
            example=sample.name,
            label=labels[i],
            prediction=predictions[i],
            correct=correct[i],
            confidence=confidences[i],
            error=errors[i],
            text="" if kind == "retrieve" else sample.fields.reads,
            media=dict(sample.media),
        )
        for i, sample in enumerate(samples)
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the class probabilities of logits [B, K].

    >>> softmax(np.zeros((1, 2)))
    array([[0.5, 0.5]])
    """
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
