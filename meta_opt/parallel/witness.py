"""A helper process that reports why a process of a multi-process run was ended.

When process 0 is lost, JAX's coordination service ends the others from C++: no Python
code runs any more, and they print a stack trace. The witness reads the output of C++
(the file descriptor of stderr, not Python's), forwards it except for such a trace, and
reports in one line what happened and what is lost.
"""

import os
import re
import select
import signal
import subprocess
import sys
import time

from meta_opt.parallel.progress import RESTART, Progress

_OF_THE_SERVICE = re.compile(rb"coordination_service|preemption_sync_manager")
_ENDED_BY_IT = b"JAX distributed service detected fatal errors"
_LOOK_SECONDS = 0.2
_HELD_SECONDS = 5.0
"""Time within which a process must end after a trace; otherwise the trace is forwarded.
"""


def start_witness(
    progress: Progress, index: int, count: int, timeout_seconds: float
) -> int:
    """Starts the witness of this process and redirects the output of C++ to it.

    Args:
        progress: of this process.
        index: of this process.
        count: of all processes.
        timeout_seconds: time without heartbeat after which the others consider this
            process lost.

    Returns:
        A file descriptor of the original stderr, for the output of Python.
    """
    kept = os.dup(2)
    reading, writing = os.pipe()
    arguments = (os.getpid(), progress.descriptor, index, count, timeout_seconds)
    subprocess.Popen(
        [sys.executable, "-m", "meta_opt.parallel.witness", *map(str, arguments)],
        stdin=reading,
        stdout=subprocess.DEVNULL,
        pass_fds=[progress.descriptor],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    return kept


class Witness:
    """Observes a process from outside.

    Args:
        progress: of the process.
        index: of the process.
        count: of all processes.
        timeout_seconds: time without heartbeat after which the others consider it lost.
    """

    def __init__(
        self, progress: Progress, index: int, count: int, timeout_seconds: float
    ) -> None:
        self._progress, self._index, self._count = progress, index, count
        self._timeout_seconds = timeout_seconds
        self._held = b""
        self._held_since: float | None = None

    def read(self, printed: bytes) -> bytes:
        """Processes whole lines of C++ output; returns those to show now."""
        late = time.monotonic() - (self._held_since or time.monotonic())
        if late > _HELD_SECONDS and _ENDED_BY_IT not in self._held:
            printed, self._held, self._held_since = self._held + printed, b"", None
        found = _OF_THE_SERVICE.search(printed)
        if found and self._held_since is None:
            self._held_since = time.monotonic()
            start = printed.rfind(b"\n", 0, found.start()) + 1
            printed, self._held = printed[:start], printed[start:]
        elif self._held_since is not None:
            printed, self._held = b"", self._held + printed
        return printed

    def ended(self) -> bytes:
        """The output to show after the process has ended."""
        if self._progress.explained:
            return b""
        if _ENDED_BY_IT not in self._held:
            return self._held
        stood_still = self._progress.silent_seconds
        what = (
            f"process 0 of {self._count} is gone, and no other can continue without it"
        )
        if self._index == 0:
            what = f"another of the {self._count} processes is gone"
        if stood_still >= self._timeout_seconds:
            what = (
                f"process {self._index} of {self._count} was suspended for "
                f"{stood_still:.0f} s, and the others have ended without it"
            )
        message = f"{what}; {self._progress.lost()}; {RESTART}\n"
        return message.encode(errors="replace")


def main() -> None:
    """Reads stdin until the process that started this ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Signals are handled by the run.
    process, descriptor, index, count = map(int, sys.argv[1:5])
    witness = Witness(Progress(descriptor), index, count, float(sys.argv[5]))
    rest = b""
    while True:
        ended = os.getppid() != process
        while select.select([0], [], [], 0.0 if ended else _LOOK_SECONDS)[0]:
            read = os.read(0, 2**16)
            if not read:
                time.sleep(
                    _LOOK_SECONDS
                )  # stdin was closed by the process, which is still running.
                break
            *lines, rest = (rest + read).split(b"\n")
            _show(witness.read(b"".join(line + b"\n" for line in lines)))
        if ended:
            _show(witness.read(rest) + witness.ended())
            return
        _show(witness.read(b""))


def _show(text: bytes) -> None:
    if text:
        os.write(2, text)


if __name__ == "__main__":
    main()
