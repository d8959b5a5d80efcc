"""What a fit of either sort of model gives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from meta_opt.data.sources.sample_schema import Sample
from meta_opt.predictor.answers import Answer
from meta_opt.predictor.backend import Backend
from meta_opt.predictor.call_record import CallRecord
from meta_opt.predictor.columns import Columns
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.presets import Preset
from meta_opt.predictor.training import Clock, Trained


class Fitting(NamedTuple):
    """What a model is made from.

    Attributes:
        parts: samples by split; ``train`` and ``validation`` are there.
        columns: of the user's data.
        name: of the data.
        preset: how much is spent.
        clock: the time that is left.
        seed: of initialisation and order.
        run_folder: for logs and checkpoints of the run; None for none.
        progress: whether to show bars.
        record: of what is decided, for the call that resumes this one.
    """

    parts: Mapping[str, Sequence[Sample]]
    columns: Columns
    name: str
    preset: Preset
    clock: Clock
    seed: int
    run_folder: Path | None
    progress: bool
    record: CallRecord

    @property
    def answered(self) -> str:
        """The split whose answers are kept: the test, where there is one."""
        return "test" if self.parts.get("test") else "validation"


class Fitted(NamedTuple):
    """A trained model, and how it came about.

    Attributes:
        backend: the model.
        columns: of the user's data, with the scale of scores.
        class_names: K, of a classification.
        decisions: made on the way.
        trained: the run.
        metric: of validation that chose.
        metrics: by split, of validation and, where there is one, of the test.
        answers: to the samples of `Fitting.answered`.
        without: by modality, metrics of these where it is left out.
        seconds: by part.
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
