"""The input of a fit: samples, columns, limits and the record of the call."""

import dataclasses
import math
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

    Several processes use the clock of the first one, so that all make the same
    decisions; every process must make the same calls.

    Args:
        limit: time limit in seconds from now; None or infinity for no limit.

    Attributes:
        limit: time limit in seconds; None for no limit.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._started = time.perf_counter()
        self.limit = None if limit == math.inf else limit

    def spent(self) -> float:
        """Returns the seconds since the start."""
        return json_from_first(time.perf_counter() - self._started)

    def left(self) -> float:
        """Returns the remaining seconds; infinity without a limit."""
        return float("inf") if self.limit is None else self.limit - self.spent()


@dataclasses.dataclass(frozen=True)
class FitCall:
    """Settings of a call of `meta_opt.fit` that its training run needs.

    Attributes:
        preset: limits on the length of training and the sizes of inputs.
        clock: clock with the remaining time.
        run_folder: folder for logs, checkpoints and evaluations of the run; None for
            none.
        progress: whether to show progress bars.
        record: record of decisions, for a call that resumes this one.
        devices: maximum number of devices; None for all accelerators, or one CPU.
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
        columns: roles of the columns of the user's data.
        name: name of the data, for messages.
        seed: random seed of initialisation and data order.
        call: limits and record of the call.
    """

    parts: Mapping[str, Sequence[Sample]]
    columns: Columns
    name: str
    seed: int
    call: FitCall

    @property
    def answered(self) -> str:
        """The split whose answers are stored: ``test`` if there is one."""
        return "test" if self.parts.get("test") else "validation"
