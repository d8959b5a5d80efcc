"""Automatic recovery: monitors a run and decides on actions against instability.

This is the feedback module of the Meta Optimizer framework (Muhajab et al.). From
training loss and validation metric it decides on actions: shrink the step, roll back to
the last good state, stop early. The loop carries them out and logs their reasons.
`meta_opt.finetuning.step_program` adds the choice of micro-batches by memory.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from meta_opt.types import check_least

_FULL = 0.95
"""Share of device memory in use above which there is a warning."""
_FLOOR = 0.01
"""Share of the first loss below which a rise is ignored."""


@dataclasses.dataclass(frozen=True)
class RecoveryConfig:
    """Thresholds of instability and of the actions against it.

    Attributes:
        enabled: whether recovery is on.
        spike: a record is bad if its mean loss is above this many times the median of
            the preceding good records.
        window: number of good records in the median.
        sustained: consecutive bad records after which the run rolls back; a loss that
            is not finite at the end of a record rolls back immediately.
        shrink: factor that scales the step after a bad record.
        recover: consecutive good records after which a shrunk step grows again.
        max_rollbacks: number of rollbacks after which the run stops instead.
        patience: number of evaluations without a better metric after which the run
            stops; 0: never.
        memory_limit: maximum bytes per device of the compiled step; 0: the device's
            memory, if known.
        slow: warn if a step takes more than this many times the median of preceding
            step times; 0: never.
    """

    enabled: bool = False
    spike: float = 2.0
    window: int = 5
    sustained: int = 2
    shrink: float = 0.5
    recover: int = 5
    max_rollbacks: int = 3
    patience: int = 0
    memory_limit: int = 0
    slow: float = 3.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not self.spike > 1:
            raise ValueError(f"recovery.spike={self.spike} must be above 1")
        if self.slow and not self.slow > 1:
            raise ValueError(f"recovery.slow={self.slow} must be 0 or above 1")
        if not 0 < self.shrink < 1:
            raise ValueError(f"recovery.shrink={self.shrink} must be between 0 and 1")
        check_least("recovery", self, window=1, sustained=1, recover=1)
        check_least("recovery", self, max_rollbacks=0, patience=0, memory_limit=0)


class Action(NamedTuple):
    """An action with its reason.

    Attributes:
        kind: kind of action: ``shrink``, ``grow``, ``roll back``, ``stop`` or
            ``micro-batch``.
        reason: explanation for the log.
    """

    kind: str
    reason: str


class RunMonitor:
    """Monitors the losses and metrics of one run.

    Args:
        config: thresholds.
        mode: ``min`` or ``max``, whichever metric is better.

    Attributes:
        scale: factor that scales the optimizer's updates.
        stopped: whether the run is to stop.

    Example:
        >>> monitor = RunMonitor(RecoveryConfig(enabled=True), "min")
        >>> monitor.record([1.0]), monitor.record([1.1])
        ([], [])
        >>> [action.kind for action in monitor.record([9.0])], monitor.scale
        (['shrink'], 0.5)
    """

    def __init__(self, config: RecoveryConfig, mode: str) -> None:
        self._config, self._mode = config, mode
        self.scale = 1.0
        self.stopped = False
        self._first: float | None = None
        self._good: list[float] = []
        self._consecutive_bad = self._consecutive_good = self._rollbacks = 0
        self._best: float | None = None
        self._since_best = 0

    @property
    def good(self) -> bool:
        """Whether the last record was good, so that the state may be kept."""
        return self._consecutive_bad == 0

    def record(self, losses: Sequence[float]) -> list[Action]:
        """Processes the training losses of the steps since the last record.

        Args:
            losses: losses in the order of the steps.

        Returns:
            Actions in the order in which to carry them out.
        """
        if not self._config.enabled or self.stopped or not losses:
            return []
        finite = [x for x in losses if math.isfinite(x)]
        if not math.isfinite(losses[-1]):
            lost = len(losses) - len(finite)
            return self._trouble(
                f"{lost} of {len(losses)} losses are not finite, the last one too",
                at_once=True,
            )
        mean = math.fsum(finite) / len(finite)
        if self._first is None:
            self._first = abs(mean)
        if self._good:
            median = statistics.median(self._good)
            size = max(abs(median), _FLOOR * self._first)
            if mean > median + (self._config.spike - 1) * size:
                return self._trouble(
                    f"mean loss {mean:.4g} is above {self._config.spike:g} times the "
                    f"usual {median:.4g}"
                )
        self._good = [*self._good, mean][-self._config.window :]
        self._consecutive_bad, self._consecutive_good = 0, self._consecutive_good + 1
        if self.scale < 1 and self._consecutive_good >= self._config.recover:
            self._consecutive_good = 0
            self.scale = min(1.0, self.scale / self._config.shrink)
            return [
                Action(
                    "grow",
                    f"{self._config.recover} good records: the step is "
                    f"{self.scale:g} of the optimizer's again",
                )
            ]
        return []

    def metric(self, value: float) -> list[Action]:
        """Processes a validation metric; NaN and infinities are never the best."""
        patience = self._config.patience
        if not self._config.enabled or self.stopped or not patience:
            return []
        better = math.isfinite(value) and (
            self._best is None
            or (value < self._best if self._mode == "min" else value > self._best)
        )
        if better:
            self._best, self._since_best = value, 0
            return []
        self._since_best += 1
        if self._since_best < patience:
            return []
        self.stopped = True
        wanted = (
            "a finite metric"
            if self._best is None
            else f"a metric better than {self._best:.4g}"
        )
        return [Action("stop", f"{patience} evaluations without {wanted}")]

    def _trouble(self, reason: str, at_once: bool = False) -> list[Action]:
        config = self._config
        self._consecutive_bad, self._consecutive_good = self._consecutive_bad + 1, 0
        self.scale *= config.shrink
        shrunk = f"{reason}: the step is {self.scale:g} of the optimizer's"
        if not at_once and self._consecutive_bad < config.sustained:
            return [Action("shrink", shrunk)]
        if self._rollbacks == config.max_rollbacks:
            self.stopped = True
            return [
                Action("stop", f"{reason}, after {self._rollbacks} times rolling back")
            ]
        self._rollbacks += 1
        self._consecutive_bad = 0
        return [Action("shrink", shrunk), Action("roll back", reason)]

    def get_state(self) -> dict[str, Any]:
        """Returns the state as a JSON value."""
        return {
            key: value
            for key, value in vars(self).items()
            if key not in ("_config", "_mode")
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state that ``get_state`` returned."""
        for key, value in state.items():
            setattr(self, key, value)


class ResourceMonitor:
    """Monitors step times and memory in use.

    A run cannot control either, and both differ between machines, so unusual values are
    only logged as warnings and are not part of a run's state.

    Args:
        config: thresholds.
        limit: memory of the device in bytes; None if unknown.

    Example:
        >>> resources = ResourceMonitor(RecoveryConfig(enabled=True), limit=1000)
        >>> [resources.record(0.1, 500) for _ in range(3)]
        [[], [], []]
        >>> resources.record(0.5, 960)
        ['a step takes 0.5 s, 5 times the usual 0.1 s', '960 of 1000 bytes are in use']
    """

    def __init__(self, config: RecoveryConfig, limit: int | None) -> None:
        self._config, self._limit = config, limit
        self._step_seconds: list[float] = []

    def record(self, step_seconds: float, bytes_in_use: int | None) -> list[str]:
        """Processes measurements since the last record; returns warnings."""
        if not self._config.enabled:
            return []
        unusual = []
        if self._step_seconds and self._config.slow:
            median = statistics.median(self._step_seconds)
            # The median may be 0 if the clock is coarse.
            if step_seconds > self._config.slow * median > 0:
                unusual.append(
                    f"a step takes {step_seconds:.3g} s, {step_seconds / median:.3g} "
                    f"times the usual {median:.3g} s"
                )
        self._step_seconds = [*self._step_seconds, step_seconds][-self._config.window :]
        if bytes_in_use and self._limit and bytes_in_use > _FULL * self._limit:
            unusual.append(f"{bytes_in_use} of {self._limit} bytes are in use")
        return unusual
