"""The result of a fit, for all kinds of models."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from meta_opt.predictor.answers import Answer
from meta_opt.predictor.backend import Backend
from meta_opt.predictor.columns import Columns
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.training import Trained


class Fitted(NamedTuple):
    """A trained model and the facts about its training.

    Attributes:
        backend: the trained model.
        columns: columns of the user's data, with the scale of scores.
        class_names: K class names of a classification task; otherwise empty.
        decisions: decisions made while planning, reading and training.
        trained: outcome of the training run.
        metric: validation metric that selected the parameters.
        metrics: metrics by split: ``validation`` and, if there is one, ``test``.
        answers: predictions on the samples of the split `Fitting.answered`.
        without: metrics on these samples without a modality, by modality.
        seconds: time in seconds of each part of the fit.
    """

    backend: Backend
    columns: Columns
    class_names: tuple[str, ...]
    decisions: list[Decision]
    trained: Trained
    metric: str
    metrics: Mapping[str, Mapping[str, float]]
    answers: Sequence[Answer]
    without: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
