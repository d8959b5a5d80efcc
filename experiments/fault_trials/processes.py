"""Several processes of a small run, of which one is killed or stopped for too long.

The others have to end by themselves, within the time-out and a few seconds, with a line
that names the process and what is lost; and the run, given again to the same or another
number of processes, has to resume from the newest checkpoint.
"""

import dataclasses
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

from experiments.fault_trials.commands import Command, Running, last_line
from experiments.fault_trials.kills import Place
from experiments.fault_trials.outcomes import (
    differences,
    largest_difference,
    outcome,
)
from meta_opt.parallel.progress import RESTART
from meta_opt.run_log import METRICS, read_records

COUNT = 4
"""Processes of a run, with one device each."""

TIMEOUT_SECONDS = 20
"""Silence after which a process is taken for gone."""

_STEPS, _PACE_SECONDS = 16, 0.5
_LAST_WORD_SECONDS = 60.0
_GRACE_SECONDS = 300.0
"""For the others to end, on a loaded machine, before the trial has failed."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A fault of one of the processes.

    Attributes:
        signum: signal to send; SIGSTOP lasts until the other processes have ended.
        process: index of the process.
        step: after which it gets it; they were drawn.
        then: number of processes that resume.
    """

    signum: signal.Signals
    process: int
    step: int
    then: int


TRIALS = {
    "killed": Trial(signal.SIGKILL, process=2, step=5, then=4),
    "first_killed": Trial(signal.SIGKILL, process=0, step=7, then=2),
    "stopped": Trial(signal.SIGSTOP, process=1, step=11, then=8),
}
"""By name."""


def lost_process(place: Place, name: str) -> dict[str, Any]:
    """Takes one process of four away in the middle of a run, and resumes the run.

    Args:
        place: where.
        name: name of the trial.

    Returns:
        As JSON values: ``seconds`` until the last of the others had ended, ``codes``
        and ``said`` of the others, ``woken``, what a stopped one says when continued,
        ``resumed`` and ``difference``, the largest of any logged metric to the unbroken
        run's, and ``differing`` parts, if as many processes resumed.

    Raises:
        TimeoutError: others do not end.
        RuntimeError: the run ends before, or is not resumed.
    """
    trial = TRIALS[name]
    reference = _unbroken(place)
    folder = place.folder(f"processes-{name}")
    running = _start(place, folder, COUNT)
    _until_step(running, folder, trial.step)
    running[trial.process].send(trial.signum)
    began = time.monotonic()
    others = [x for i, x in enumerate(running) if i != trial.process]
    codes = [x.finish(_GRACE_SECONDS) for x in others]
    seconds = time.monotonic() - began
    running[trial.process].send(signal.SIGCONT)
    running[trial.process].finish(_GRACE_SECONDS)
    said = {_verdict(x) for x in others}
    woken = ""
    if trial.signum == signal.SIGSTOP:
        woken = _verdict(running[trial.process])
    printed = _finished(_start(place, folder, trial.then))
    went_on = [x for x in printed.splitlines() if " from step " in x]
    found = outcome(folder)
    result = {
        "process": trial.process,
        "signal": trial.signum.name,
        "step": trial.step,
        "seconds": round(seconds, 1),
        "codes": codes,
        "said": sorted(line.replace(str(place.root), "") for line in said),
        "woken": woken,
        "traceback": any("Traceback" in x.printed() for x in others),
        "then": trial.then,
        "resumed": went_on[-1].rpartition(" ")[2] if went_on else "0",
        "difference": largest_difference(
            read_records(folder / "run" / METRICS),
            read_records(reference / "run" / METRICS),
        ),
        "differing": (
            differences(found, outcome(reference)) if trial.then == COUNT else []
        ),
    }
    shutil.rmtree(folder)
    return result


def _command(folder: Path, count: int, index: int, port: int) -> Command:
    return Command(
        "experiments.fault_trials.small_run",
        (
            f"--workdir={folder / 'run'}",
            f"--steps={_STEPS}",
            f"--pace={_PACE_SECONDS}",
            f"--coordinator=localhost:{port}",
            f"--processes={count}",
            f"--process={index}",
            f"--process_timeout={TIMEOUT_SECONDS}",
        ),
    )


def _start(place: Place, folder: Path, count: int) -> list[Running]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        place.starter.start(
            _command(folder, count, index, port),
            folder / f"output-{index}.log",
        )
        for index in range(count)
    ]


def _verdict(running: Running) -> str:
    """Returns the last line of output, including that of a witness."""
    until = time.monotonic() + _LAST_WORD_SECONDS
    while RESTART not in running.printed() and time.monotonic() < until:
        time.sleep(0.1)
    return last_line(running.printed())


def _finished(running: list[Running]) -> str:
    """Returns the output of process 0 after all processes have succeeded."""
    codes = [process.finish() for process in running]
    if any(codes):
        printed = "\n".join(process.printed()[-2000:] for process in running)
        raise RuntimeError(f"exit codes {codes}: {printed}")
    return running[0].printed()


def _unbroken(place: Place) -> Path:
    """Returns the folder of an undisturbed run of four processes."""
    folder = place.root / "processes-unbroken"
    finished = place.root / f"{folder.name}.finished"
    if not finished.exists():
        folder = place.folder(folder.name)
        _finished(_start(place, folder, COUNT))
        finished.touch()
    return folder


def _until_step(running: list[Running], folder: Path, step: int) -> None:
    """Waits until a step is logged."""
    metrics = folder / "run" / METRICS
    while (
        not metrics.exists() or f'{{"step": {step}, "train' not in metrics.read_text()
    ):
        for process in running:
            if process.wait(0.01) is not None:
                raise RuntimeError(f"it ended: {process.printed()[-2000:]}")
