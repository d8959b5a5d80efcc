"""What a fit of either kind of model is given: samples, columns, limits, a record."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from meta_opt.data.sources.sample_schema import Sample
from meta_opt.parallel.processes import json_from_first
from meta_opt.predictor.call_record import CallRecord
from meta_opt.predictor.columns import Columns
from meta_opt.predictor.presets import Preset


class Clock:
    """Remaining time under a time limit.

    Several processes go by the clock of the first one, so that they decide alike: all
    of them must ask.

    Args:
        limit: seconds from now; None for no limit.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._started, self.limit = time.perf_counter(), limit

    def spent(self) -> float:
        """Seconds since the start."""
        return json_from_first(time.perf_counter() - self._started)

    def left(self) -> float:
        """Remaining seconds; infinite without a limit."""
        return float("inf") if self.limit is None else self.limit - self.spent()


@dataclasses.dataclass(frozen=True)
class FitCall:
    """Settings of a call of `meta_opt.fit` that its training run needs.

    Attributes:
        preset: limits on the length of training and the sizes of inputs.
        clock: the remaining time.
        run_folder: for logs, checkpoints and evaluations of the run; None for none.
        progress: whether to show bars.
        record: keeps decisions, for the call that resumes this one.
        devices: at most so many; None for all accelerators, or one CPU.
    """

    preset: Preset
    clock: Clock = dataclasses.field(default_factory=Clock)
    run_folder: Path | None = None
    progress: bool = True
    record: CallRecord = dataclasses.field(
        default_factory=lambda: CallRecord(None, {}, {})
    )
    devices: int | None = None


@dataclasses.dataclass(frozen=True)
class Fitting:
    """The input of a fit.

    Attributes:
        parts: samples by split, at least ``train`` and ``validation``.
        columns: of the user's data.
        name: of the data.
        seed: of initialisation and order.
        call: limits of the call and its record.
    """

    parts: Mapping[str, Sequence[Sample]]
    columns: Columns
    name: str
    seed: int
    call: FitCall

    @property
    def answered(self) -> str:
        """The split whose answers are kept: ``test`` if there is one."""
        return "test" if self.parts.get("test") else "validation"
