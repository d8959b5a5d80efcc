"""A process beside one of several of a run, which says why that one was ended.

When process 0 is gone, JAX's coordination service ends the others from C++: no line of
Python runs any more, and what they print is a stack trace. The witness reads what C++
prints (stderr of the file descriptor, not Python's), passes it on but for such a trace,
and says in one line what happened and what is lost.
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
"""How long a trace may take until the process has ended; then it is passed on."""


def start_witness(
    progress: Progress, index: int, count: int, timeout_seconds: float
) -> int:
    """Starts the witness of this process, and gives it what C++ prints.

    Args:
        progress: of this process.
        index: of this process.
        count: of all processes.
        timeout_seconds: silence after which the others take this process for dead.

    Returns:
        A file descriptor of the former stderr, for what Python prints.
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
    """What is known of a process from the outside.

    Args:
        progress: of the process.
        index: of the process.
        count: of all processes.
        timeout_seconds: silence after which the others take it for dead.
    """

    def __init__(
        self, progress: Progress, index: int, count: int, timeout_seconds: float
    ) -> None:
        self._progress, self._index, self._count = progress, index, count
        self._timeout_seconds = timeout_seconds
        self._held = b""
        self._held_since: float | None = None

    def read(self, printed: bytes) -> bytes:
        """Takes whole lines that C++ printed; returns those to show now."""
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
        """What to show when the process has ended."""
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
        signal.signal(number, signal.SIG_IGN)  # They are for the run.
    process, descriptor, index, count = map(int, sys.argv[1:5])
    witness = Witness(Progress(descriptor), index, count, float(sys.argv[5]))
    rest = b""
    while True:
        ended = os.getppid() != process
        while select.select([0], [], [], 0.0 if ended else _LOOK_SECONDS)[0]:
            read = os.read(0, 2**16)
            if not read:
                time.sleep(_LOOK_SECONDS)  # Closed by the process, which still runs.
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
