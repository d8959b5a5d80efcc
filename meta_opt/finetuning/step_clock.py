"""The time of a run's steps, without compilation, evaluation and saving."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from meta_opt.types import PyTree


class StepClock:
    """Measures the time of steps between `resume` and `stop`.

    Attributes:
        train_seconds: time of the steps including their input; summed over all parts of
            an interrupted run.
        input_seconds: part of ``train_seconds`` that was spent waiting for batches.
        compile_seconds: time of tracing and compiling the step in this process.
    """

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self.input_seconds = 0.0
        self.compile_seconds = 0.0
        self._resumed_at: float | None = None
        self._logged_seconds = 0.0

    def resume(self) -> None:
        """Starts the clock, unless it is running."""
        if self._resumed_at is None:
            self._resumed_at = time.perf_counter()

    def stop(self, state: PyTree) -> None:
        """Waits until ``state`` is computed, and stops the clock if it is running."""
        jax.block_until_ready(state)
        if self._resumed_at is not None:
            self.train_seconds += time.perf_counter() - self._resumed_at
            self._resumed_at = None

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Counts the seconds of a block as waiting for a batch, if the clock runs."""
        asked = time.perf_counter()
        yield
        if self._resumed_at is not None:
            self.input_seconds += time.perf_counter() - asked

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Measures the seconds of a block as compilation."""
        started = time.perf_counter()
        yield
        self.compile_seconds = time.perf_counter() - started

    def timing(self, steps: int) -> dict[str, float]:
        """Returns all times, and the mean time of the steps since the last call.

        Args:
            steps: number of steps since the last call.
        """
        since = self.train_seconds - self._logged_seconds
        self._logged_seconds = self.train_seconds
        return {**self._seconds(), "step_seconds": since / steps}

    def get_state(self) -> dict[str, float]:
        """Returns the times that a resumed run continues from, as JSON values."""
        found = self._seconds()
        del found["compile_seconds"]
        return found

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores the times in ``state``, which may have other keys, too."""
        self.train_seconds = self._logged_seconds = state["train_seconds"]
        self.input_seconds = state["input_seconds"]

    def _seconds(self) -> dict[str, float]:
        names = ("train_seconds", "input_seconds", "compile_seconds")
        return {name: getattr(self, name) for name in names}
