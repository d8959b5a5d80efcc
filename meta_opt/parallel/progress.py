"""Progress of a process in shared memory that another process can read."""

import mmap
import os
import struct
import tempfile
import time
from pathlib import Path

RESTART = "restart all processes to resume from what was saved"
"""Advice in the message of a run that ends because one of its processes is lost."""

_FIELDS = struct.Struct("dqq")
"""Layout: time of the last heartbeat, step, and whether an end has been reported."""

_NAMES = ("seconds", "step", "explained")
_SIZE = 4096


class Progress:
    """Progress of a process, which outlives it in other processes that have it open.

    Args:
        descriptor: file descriptor from another process; None creates a new file.

    Attributes:
        descriptor: file descriptor, to pass to another process.

    Example:
        >>> mine = Progress()
        >>> mine.note(3, None)
        >>> Progress(mine.descriptor).step
        3
    """

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            with tempfile.TemporaryFile() as file:
                file.truncate(_SIZE)
                descriptor = os.dup(file.fileno())
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _SIZE)

    @property
    def step(self) -> int:
        """Number of steps so far."""
        return self._fields()[1]

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last heartbeat."""
        return time.monotonic() - self._fields()[0]

    @property
    def explained(self) -> bool:
        """Whether the process itself has reported why it ends."""
        return bool(self._fields()[2])

    def note(self, step: int, workdir: Path | None) -> None:
        """Records the step and the folder of the run, which has ``checkpoints/``."""
        self._write(step=step)
        path = os.fsencode(workdir.absolute()) if workdir else b""
        if len(path) < _SIZE - _FIELDS.size:
            self._memory[_FIELDS.size : _FIELDS.size + len(path) + 1] = path + b"\0"

    def live(self) -> None:
        """Sends a heartbeat."""
        self._write(seconds=time.monotonic())

    def explain(self) -> None:
        """Records that the process itself reports why it ends."""
        self._write(explained=1)

    def lost(self) -> str:
        """Describes what is lost if the process ends now."""
        text = self._memory[_FIELDS.size :].partition(b"\0")[0]
        if not text:
            return "what was saved is whole"
        folder = Path(os.fsdecode(text)) / "checkpoints"
        saved = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
        if not saved:
            return f"{_steps(self.step)} lost: there is no checkpoint yet"
        newest = max(saved)
        if self.step <= newest:
            return f"nothing is lost: step {newest} is saved"
        since = f"since the checkpoint of step {newest}"
        return f"{_steps(self.step - newest, since)} lost"

    def _fields(self) -> tuple[float, int, int]:
        return _FIELDS.unpack_from(self._memory)

    def _write(self, **changes: float) -> None:
        values = dict(
            zip(("seconds", "step", "explained"), self._fields(), strict=True)
        )
        _FIELDS.pack_into(self._memory, 0, *{**values, **changes}.values())


def _steps(count: int, since: str = "") -> str:
    counted = "1 step" if count == 1 else f"{count} steps"
    return f"{counted}{' ' * bool(since)}{since} {'is' if count == 1 else 'are'}"


_current: Progress | None = None


def follow(progress: Progress | None) -> None:
    """Sets the object that `note_progress` writes to; None disables it."""
    global _current
    _current = progress


def note_progress(step: int, workdir: Path | None) -> None:
    """Records the step of this process's run, if it is followed."""
    if _current is not None:
        _current.note(step, workdir)
