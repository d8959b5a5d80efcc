"""What a predictor remembers of the fit that made it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from meta_opt.predictor.answers import Answer


@dataclasses.dataclass(frozen=True)
class Record:
    """What is remembered of a fit, as JSON values.

    Attributes:
        source: name of the training data.
        preset: that was asked for.
        metric: of validation that chose.
        metrics: by split, of the model.
        history: the run's records of metrics.
        actions: what automatic recovery did.
        seconds: by part of the fit.
        answers: to held-out samples.
        answered: the split that they are of.
        without: by modality, metrics of that split where it is left out.
    """

    source: str
    preset: str
    metric: str
    metrics: Mapping[str, Mapping[str, float]]
    history: Sequence[Mapping[str, Any]] = ()
    actions: Sequence[Mapping[str, Any]] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    answers: Sequence[Answer] = ()
    answered: str = "validation"
    without: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
