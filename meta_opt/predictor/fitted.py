"""The result of a fit of either kind of model."""

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
        backend: the model.
        columns: of the user's data, with the scale of scores.
        class_names: K names of a classification; otherwise empty.
        decisions: made while planning, reading and training.
        trained: the training run.
        metric: the validation metric that selected the parameters.
        metrics: by split: ``validation`` and, if there is one, ``test``.
        answers: to the samples of `Fitting.answered`.
        without: by modality, metrics of these samples without that modality.
        seconds: by part of the fit.
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
