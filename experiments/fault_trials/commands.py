"""Commands in separate processes, which can be killed at any time."""

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of this repository.

    Attributes:
        module: module to run, such as ``experiments.finetune``.
        arguments: command-line arguments.
    """

    module: str
    arguments: tuple[str, ...]


class Running:
    """A started command.

    Attributes:
        pid: process ID.
        started: start time in seconds of the monotonic clock.
    """

    def __init__(self, pid: int, output: Path, poll: Callable[[], int | None]) -> None:
        self.pid, self.started = pid, time.monotonic()
        self._output, self._poll = output, poll
        self._offset = output.stat().st_size if output.exists() else 0
        self._ended: int | None = None
        self._handle = os.pidfd_open(pid)

    def wait(self, seconds: float) -> int | None:
        """Waits at most ``seconds``; returns the exit code, None if still running.

        The exit code is negative for a signal.
        """
        if self._ended is None:
            if select.select([self._handle], [], [], max(seconds, 0.0))[0]:
                self._ended = self._poll()
                os.close(self._handle)
        return self._ended

    def finish(self, seconds: float = 900.0) -> int:
        """Waits for the end; returns the exit code.

        Raises:
            TimeoutError: the command took longer than ``seconds`` and was killed.
        """
        code = self.wait(seconds)
        if code is None:
            self.kill()
            raise TimeoutError(f"process {self.pid} takes over {seconds:.0f} s")
        return code

    def send(self, signum: int) -> None:
        """Sends a signal if the command is still running."""
        if self._ended is None:
            os.kill(self.pid, signum)

    def kill(self) -> int:
        """Sends SIGKILL; returns the exit code, also if it had ended before."""
        self.send(signal.SIGKILL)
        code = self.wait(60.0)
        assert code is not None
        return code

    def printed(self) -> str:
        """Returns the output so far, stdout and stderr."""
        if not self._output.exists():
            return ""
        with self._output.open("rb") as file:
            file.seek(self._offset)
            return file.read().decode(errors="replace")


class Starter:
    """Starts commands, by forking a process that has imported their modules.

    Args:
        environment: environment variables of all commands.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.fault_trials.starter"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that starts the commands has ended")
        return json.loads(line)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def start(self, command: Command, output: Path, **how: Any) -> Running:
        """Starts a command.

        Args:
            command: the command.
            output: file that stdout and stderr are appended to.
            **how: ``limits``, resource limits by name; ``environment``, further
                variables; ``clock``, seconds by which the wall clock goes back each
                time it is read.
        """
        output.parent.mkdir(parents=True, exist_ok=True)
        request = {"module": command.module, "arguments": command.arguments, **how}
        pid = self._ask({**request, "output": str(output)})["pid"]
        return Running(pid, output, lambda: self._ask({"poll": pid})["code"])

    def close(self) -> None:
        """Ends the process that forks the commands."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def last_line(printed: str) -> str:
    """Returns the last line that is not blank; after an abort, the line about it."""
    lines: Sequence[str] = [x for x in printed.splitlines() if x.strip()]
    aborts = [x for x in lines if x.startswith("Fatal Python error")]
    return (aborts or lines or [""])[-1].strip()
