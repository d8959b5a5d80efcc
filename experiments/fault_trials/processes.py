"""Multi-process runs in which one process is killed or stopped.

The other processes must exit by themselves, within a few seconds of the heartbeat
time-out, with a line that names the lost process. The same command, with the same or
another number of processes, must then resume from the newest checkpoint.
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
"""Number of processes of a run, with one device each."""

TIMEOUT_SECONDS = 20
"""Time without a heartbeat after which a process counts as lost."""

_STEPS, _PACE_SECONDS = 16, 0.5
_LAST_WORD_SECONDS = 60.0
_GRACE_SECONDS = 300.0
"""Time that the other processes have to exit, on a loaded machine, before the trial
counts as failed."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A signal to one of the processes.

    Attributes:
        signum: the signal; SIGSTOP lasts until the other processes have exited.
        process: index of the process that receives it.
        step: training step after which it is sent, drawn at random once.
        then: number of processes that resume the run.
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
"""Trials by name."""


def lost_process(place: Place, name: str) -> dict[str, Any]:
    """Kills or stops one of four processes during a run, and resumes the run.

    Args:
        place: folder and starter of the trials.
        name: name of the trial.

    Returns:
        JSON values: ``seconds`` until the last of the other processes exited;
        ``codes`` and ``said``, their exit codes and last lines; ``woken``, the last
        line of a stopped process after it was continued; ``resumed``, the step that
        the run resumed from; ``difference``, the largest relative difference of any
        logged metric to the undisturbed run; and ``differing``, the parts of the
        outcome that differ from it, if the number of processes is the same.

    Raises:
        TimeoutError: the other processes do not exit.
        RuntimeError: the run ended before the signal, or could not be resumed.
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
    printed = _finish_all(_start(place, folder, trial.then))
    resumed = [x for x in printed.splitlines() if " from step " in x]
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
        "resumed": resumed[-1].rpartition(" ")[2] if resumed else "0",
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
    """Returns the last printed line.

    It may come from the watching process, which prints after this one has ended.
    """
    until = time.monotonic() + _LAST_WORD_SECONDS
    while RESTART not in running.printed() and time.monotonic() < until:
        time.sleep(0.1)
    return last_line(running.printed())


def _finish_all(running: list[Running]) -> str:
    """Waits until all processes have succeeded; returns the output of process 0."""
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
        _finish_all(_start(place, folder, COUNT))
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
                raise RuntimeError(
                    f"a process ended before step {step}: {process.printed()[-2000:]}"
                )
