"""TensorBoard scalars, written synchronously."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ScalarEvents:
    """Appends scalars to a new event file.

    `tensorboardX.SummaryWriter` writes in a thread, which dies if the disk is full or
    the clock is set back by weeks. Its queue then fills up, and training hangs.

    Args:
        folder: folder of the event file, created if needed.
        first_step: TensorBoard hides values of this and later steps in earlier event
            files of the folder.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> events = ScalarEvents(tempfile.mkdtemp())
        >>> events.write(1, {"train/loss": 0.5})
        >>> events.close()
    """

    def __init__(self, folder: str | os.PathLike, first_step: int = 0) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        Path(folder).mkdir(parents=True, exist_ok=True)
        # The name has only the second, in which two processes may start, so add the
        # pid.
        self._writer = EventsWriter(str(Path(folder) / "events"), f".{os.getpid()}")
        self._protos = event_pb2
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=first_step, session_log=start)
        self._writer.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step.

        Raises:
            OSError: the file cannot be written.
        """
        from tensorboardX.summary import scalar

        for tag, value in values.items():
            self._write(step=step, summary=scalar(tag, value))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write_event(self._protos.Event(wall_time=time.time(), **fields))
