"""The record of the fit that made a predictor."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from meta_opt.predictor.answers import Answer


@dataclasses.dataclass(frozen=True)
class Record:
    """The record of a fit, as JSON values.

    Attributes:
        source: name of the training data.
        preset: name of the preset.
        metric: the validation metric that selected the parameters.
        metrics: metrics of the model by split.
        history: the run's records of metrics.
        actions: actions of automatic recovery.
        seconds: by part of the fit.
        answers: to held-out samples.
        answered: the split of these samples.
        without: by modality, metrics of that split without the modality.
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
