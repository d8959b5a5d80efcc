"""SIGINT and SIGTERM in a long run: finish the step, save, and raise `Interrupted`."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

_log = logging.getLogger(__name__)


class Interrupted(Exception):
    """A signal stopped the run after it was saved; the same call resumes it.

    Attributes:
        signum: number of the signal.
        step: the last step that was finished and saved.
        exit_code: exit code for the process, 128 + signum.
    """

    def __init__(self, signum: int, step: int) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"{name} at step {step}")
        self.signum = signum
        self.step = step
        self.exit_code = 128 + signum

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int, int]]:
        """Arguments for pickling, to pass it between processes."""
        return type(self), (self.signum, self.step)


class Signals:
    """Records the first SIGINT or SIGTERM; the second one ends the process.

    Attributes:
        received: the first signal, or None.
    """

    received: int | None = None

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Installs handlers; does nothing outside the main thread."""
        # Python delivers signals to the main thread only.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._handle)

    def restore(self) -> None:
        """Restores the previous handlers."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def _handle(self, signum: int, frame: Any) -> None:
        if self.received is not None:
            for number in self._previous:
                signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.received = signum
        _log.warning(
            "%s: finishing the step and saving; repeat the signal to abort",
            signal.Signals(signum).name,
        )


@contextlib.contextmanager
def catch_signals() -> Iterator[Signals]:
    """Handles SIGINT and SIGTERM during a ``with`` block."""
    signals = Signals()
    signals.install()
    try:
        yield signals
    finally:
        signals.restore()
