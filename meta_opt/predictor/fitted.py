"""The result of fitting a multimodal or a vision-text model."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from meta_opt.predictor.answers import Answer
from meta_opt.predictor.backend import Backend
from meta_opt.predictor.columns import Columns
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.training import Trained


class Fitted(NamedTuple):
    """A trained model and information about its training.

    Attributes:
        backend: the trained model.
        columns: roles of the columns of the user's data, with the scale of scores.
        class_names: names of the K classes; empty for other tasks.
        decisions: decisions made while planning, reading and training.
        trained: outcome of the training run.
        metric: validation metric that selected the parameters.
        metrics: metrics of ``validation`` and, if there is one, ``test``, by split.
        answers: predictions for the samples of the split `Fitting.answered`.
        without: metrics on these samples without one modality, by that modality.
        seconds: duration of each part of the fit.
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
