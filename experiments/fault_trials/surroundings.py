"""Faults around a run: signals, disks, data, clocks, memory, and a second run.

Each function takes a `Place`, injects one fault and returns JSON values: ``outcome`` in
words; ``said``, the error line that the user sees; and ``differing``, the parts in
which the run, after it is resumed without the fault, differs from an undisturbed one.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.fault_trials.commands import Command, Running, last_line
from experiments.fault_trials.kills import Place, finish
from experiments.fault_trials.kinds import KINDS
from experiments.fault_trials.outcomes import differences, newest_step, outcome

KIND = "finetune_full"
"""Kind of run, a key of `KINDS`, that the faults are injected into."""

_WAIT_SECONDS = 900.0


def second_run(place: Place) -> dict[str, Any]:
    """Starts the same command a second time while the run is in progress."""
    folder, command = _new_run(place, "second_run")
    first = place.start(command, folder)
    _until(first, lambda: (folder / "run" / "checkpoints").is_dir())
    second = place.starter.start(command, folder / "second.log")
    code, printed = second.finish(), second.printed()
    finish(first)
    return _found(place, folder, "refused", code, printed)


def terminated_while_saving(place: Place) -> dict[str, Any]:
    """Sends SIGTERM while a checkpoint is being written."""
    folder, command = _new_run(place, "terminated")
    running = place.start(command, folder)
    checkpoints = folder / "run" / "checkpoints"
    _until(running, lambda: any(checkpoints.glob("*orbax-checkpoint-tmp*")))
    running.send(signal.SIGTERM)
    code, printed = running.finish(), running.printed()
    return _resume_without_fault(place, folder, command, "stopped", code, printed)


def file_size_limit(place: Place) -> dict[str, Any]:
    """Limits files to 256 KiB, so that writes fail as on a full disk."""
    folder, command = _new_run(place, "file_size")
    running = place.start(command, folder, limits={"RLIMIT_FSIZE": 2**18})
    code, printed = running.finish(), running.printed()
    return _resume_without_fault(place, folder, command, "ended", code, printed)


def disk_full(place: Place) -> dict[str, Any]:
    """Runs on a 20 MiB file system, too small for the second checkpoint.

    The file system is enlarged before the run is resumed.

    Raises:
        PermissionError: mounting needs root.
    """
    with _mounted(place, "disk_full", "20m") as (folder, remount):
        command = place.command(KIND, folder)
        running = place.start(command, folder)
        code, printed = running.finish(), running.printed()
        remount("size=200m")
        return _resume_without_fault(place, folder, command, "ended", code, printed)


def read_only(place: Place) -> dict[str, Any]:
    """Resumes on a file system that is read-only, and again when it is writable.

    Raises:
        PermissionError: mounting needs root.
    """
    with _mounted(place, "read_only", "200m") as (folder, remount):
        command = place.command(KIND, folder)
        _killed_half_way(place, folder, command)
        remount("ro")
        running = place.starter.start(command, place.root / "read_only.log")
        code, printed = running.finish(), running.printed()
        remount("rw")
        return _resume_without_fault(place, folder, command, "refused", code, printed)


def clock_set_back(place: Place) -> dict[str, Any]:
    """Sets the wall clock back by an hour each time it is read."""
    folder, command = _new_run(place, "clock")
    running = place.start(command, folder, clock=3600.0)
    code, printed = running.finish(), running.printed()
    return _found(place, folder, "survived", code, printed)


def data_changed(place: Place) -> dict[str, Any]:
    """Changes a caption before the run is resumed."""

    def change(data: Path) -> None:
        file = data / "captions.jsonl"
        file.write_text(file.read_text().replace("number 3", "number 4"))

    return _with_other_data(place, "data_changed", change)


def data_vanished(place: Place) -> dict[str, Any]:
    """Deletes an image before the run is resumed."""
    return _with_other_data(
        place, "data_vanished", lambda data: (data / "3.png").unlink()
    )


def data_vanished_meanwhile(place: Place) -> dict[str, Any]:
    """Moves all images away during the run, and puts them back before resuming."""
    folder, command = _new_run(place, "data_vanished_meanwhile", own_data=True)
    pictures = folder / "data" / "pictures"
    running = place.start(command, folder)
    _until(running, lambda: newest_step(folder) > 0)
    pictures.rename(pictures.with_name("elsewhere"))
    code, printed = running.finish(), running.printed()
    pictures.with_name("elsewhere").rename(pictures)
    return _resume_without_fault(place, folder, command, "ended", code, printed)


def memory_short(place: Place) -> dict[str, Any]:
    """Limits the address space to less than the run needs."""
    folder, command = _new_run(place, "memory")
    running = place.start(command, folder, limits={"RLIMIT_AS": 2**30 + 2**29})
    code, printed = running.finish(), running.printed()
    return _resume_without_fault(place, folder, command, "ended", code, printed)


FAULTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    fault.__name__: fault
    for fault in (
        *(second_run, terminated_while_saving, disk_full, file_size_limit, read_only),
        *(data_changed, data_vanished, data_vanished_meanwhile),
        *(clock_set_back, memory_short),
    )
}
"""Faults by name."""


def _new_run(place: Place, name: str, own_data: bool = False) -> tuple[Path, Command]:
    """Returns an empty folder and the command that runs in it.

    With ``own_data`` the run has its own copy of the data, which a fault may change.
    """
    place.unbroken(KIND)
    folder = place.folder(name)
    if own_data:
        shutil.copytree(place.shared / "pictures", folder / "data" / "pictures")
        return folder, KINDS[KIND].command(folder, folder / "data")
    return folder, place.command(KIND, folder)


def _until(running: Running, reached: Callable[[], bool]) -> None:
    """Waits until ``reached()`` is true.

    Raises:
        RuntimeError: the run ended first, or `_WAIT_SECONDS` have passed.
    """
    until = time.monotonic() + _WAIT_SECONDS
    while not reached():
        if running.wait(0.01) is not None or time.monotonic() > until:
            raise RuntimeError(
                "the run ended, or took too long, before the fault could be injected: "
                f"{running.printed()[-1000:]}"
            )


def _killed_half_way(place: Place, folder: Path, command: Command) -> None:
    running = place.start(command, folder)
    _until(running, lambda: newest_step(folder) > 0)
    running.kill()


def _with_other_data(
    place: Place, name: str, change: Callable[[Path], None]
) -> dict[str, Any]:
    folder, command = _new_run(place, name, own_data=True)
    pictures = folder / "data" / "pictures"
    _killed_half_way(place, folder, command)
    change(pictures)
    running = place.start(command, folder)
    code, printed = running.finish(), running.printed()
    shutil.copytree(place.shared / "pictures", pictures, dirs_exist_ok=True)
    return _resume_without_fault(place, folder, command, "refused", code, printed)


def _resume_without_fault(
    place: Place, folder: Path, command: Command, word: str, code: int, printed: str
) -> dict[str, Any]:
    """Resumes the run without the fault, to its end; returns the trial's result."""
    resumed = finish(place.start(command, folder)) if code else ""
    lines = [x for x in resumed.splitlines() if " from step " in x]
    found = _found(place, folder, word, code, printed)
    start = lines[-1].rpartition("] ")[2] if lines else "from the beginning"
    start = start.replace(str(place.root), "")
    return {**found, "resumed": start} if code else found


def _found(
    place: Place, folder: Path, word: str, code: int, printed: str
) -> dict[str, Any]:
    expected = outcome(place.root / f"{KIND}-unbroken")
    result = {
        "outcome": word if code else "survived",
        "code": code,
        "said": last_line(printed).replace(str(place.root), "") if code else "",
        "traceback": "Traceback" in printed,
        "differing": differences(outcome(folder), expected),
    }
    shutil.rmtree(folder, ignore_errors=True)
    return result


@contextlib.contextmanager
def _mounted(
    place: Place, name: str, size: str
) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """Yields a run's folder on a tmpfs, and a function that remounts it."""
    if os.geteuid():
        raise PermissionError(f"{name} mounts a file system, which needs root")
    place.unbroken(KIND)
    mount = place.root / f"{name}-mount"
    mount.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount))
    try:
        inside = Place(mount, place.starter)
        compiled = place.shared.absolute()
        (mount / "shared").symlink_to(compiled)
        yield (
            inside.folder("run"),
            lambda how: _run("mount", "-o", f"remount,{how}", str(mount)),
        )
    finally:
        _run("umount", "--lazy", str(mount))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
