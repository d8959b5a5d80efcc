"""The record of the fit that trained a predictor."""

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
        metric: validation metric that selected the parameters.
        metrics: metrics of the model by split.
        history: metrics logged during the run.
        actions: actions of automatic recovery.
        seconds: duration of each part of the fit.
        answers: predictions for held-out samples.
        answered: split of these samples.
        without: metrics of that split without one modality, by that modality.
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
