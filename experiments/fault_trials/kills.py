"""Runs that are killed at random moments and resumed by the same command."""

import collections
import dataclasses
import random
import shutil
import time
from pathlib import Path
from typing import Any

from experiments.fault_trials.commands import Command, Running, Starter, last_line
from experiments.fault_trials.kinds import KINDS, write_pictures
from experiments.fault_trials.outcomes import (
    differences,
    entries,
    newest_step,
    outcome,
    temporary_files,
)

_LOOK_SECONDS = 0.02
_LARGEST_DELAY = 0.05
"""Seconds from a change in the folder to the kill, so that it hits a save in progress
or one that has just finished."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The folder of all trials, and the starter of their commands.

    Attributes:
        root: folder of all trials.
        starter: starts the commands.
    """

    root: Path
    starter: Starter

    @property
    def shared(self) -> Path:
        """Folder of the data, features and compiled programs that all runs share."""
        return self.root / "shared"

    def folder(self, name: str) -> Path:
        """Creates an empty folder for a run, linked to the shared compiled programs."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "run").mkdir(parents=True)
        compiled = self.shared / "compiled"
        compiled.mkdir(parents=True, exist_ok=True)
        (folder / "run" / "compiled").symlink_to(compiled.absolute())
        return folder

    def start(self, command: Command, folder: Path, **how: Any) -> Running:
        """Starts a command; see `Starter.start`."""
        return self.starter.start(command, folder / "output.log", **how)

    def command(self, kind: str, folder: Path) -> Command:
        """Returns the command of a kind of run, after preparing its data."""
        write_pictures(self.shared)
        made, prepared = KINDS[kind], self.shared / f"{kind}.prepared"
        if made.prepare is not None and not prepared.exists():
            finish(self.start(made.prepare(self.shared), self.shared))
            prepared.touch()
        return made.command(folder, self.shared)

    def unbroken(self, kind: str) -> tuple[Path, float]:
        """Returns the folder of an undisturbed run of a kind, and its seconds.

        It is run twice: the second run is timed with a warm compilation cache, and
        comparisons are only meaningful if two undisturbed runs agree.

        Raises:
            RuntimeError: the run fails, or two undisturbed runs differ.
        """
        folder, took = self.root / f"{kind}-unbroken", self.root / f"{kind}.seconds"
        if took.exists():
            return folder, float(took.read_text())
        found = []
        for name in (f"{kind}-first", f"{kind}-unbroken"):
            folder = self.folder(name)
            began = time.monotonic()
            finish(self.start(self.command(kind, folder), folder))
            seconds = time.monotonic() - began
            found.append(outcome(folder))
        if differing := differences(*found):
            raise RuntimeError(f"two undisturbed runs of {kind} differ: {differing}")
        took.write_text(f"{seconds:.2f}")
        return folder, seconds


def finish(running: Running) -> str:
    """Waits for a command that must succeed; returns its output.

    Raises:
        RuntimeError: the command failed.
    """
    code = running.finish()
    if code:
        raise RuntimeError(f"exit code {code}: {running.printed()[-2000:]}")
    return running.printed()


def killed_runs(place: Place, kind: str, number: int, kills: int) -> dict[str, Any]:
    """Kills and resumes runs, and compares their outcomes with an undisturbed run.

    A run is killed repeatedly and resumed in the same folder until it finishes; then
    the next run starts, until there have been ``kills`` kills. Half of the kill times
    are uniform over the duration of an undisturbed run. The other half follow a change
    in the run's folder, because saving and writing results take a small part of the
    time but are what a kill can corrupt.

    Args:
        place: folder and starter of the trials.
        kind: kind of run.
        number: number of this trial; it seeds the kill times.
        kills: total number of kills.

    Returns:
        JSON values: ``kills``, with second, stage and step of each; ``runs``, the
        number of finished runs; ``differing``, the parts that differ from the
        undisturbed run; ``tracebacks``, their number; and ``temporary``, the
        half-written files that were left.
    """
    reference, seconds = place.unbroken(kind)
    expected = outcome(reference)
    changes = max(2, _count_changes(reference))
    chance = random.Random(f"{kind} {number}")
    moments: list[dict[str, Any]] = []
    differing: list[str] = []
    temporary: list[str] = []
    runs = tracebacks = 0
    while len(moments) < kills:
        folder = place.folder(f"{kind}-{number}")
        command = place.command(kind, folder)
        while True:
            running = place.start(command, folder)
            code = None
            if len(moments) < kills:
                after = chance.randint(1, changes) if chance.random() < 0.5 else None
                delay = chance.uniform(0, seconds if after is None else _LARGEST_DELAY)
                code = _kill(running, folder, after, delay, moments)
            code = running.finish() if code is None else code
            tracebacks += "Traceback" in running.printed()
            if code == 0:
                break
            if code != -9:
                raise RuntimeError(
                    f"{kind}, trial {number}: exit code {code} after "
                    f"{len(moments)} kills: {running.printed()[-3000:]}"
                )
        runs += 1
        differing += differences(outcome(folder), expected)
        temporary += temporary_files(folder)
    shutil.rmtree(folder)
    return {
        "kills": moments,
        "runs": runs,
        "differing": differing,
        "tracebacks": tracebacks,
        "temporary": temporary,
    }


def _kill(
    running: Running,
    folder: Path,
    after: int | None,
    delay: float,
    moments: list[dict[str, Any]],
) -> int | None:
    """Kills a run after ``after`` changes of its folder and a delay in seconds.

    A successful kill is appended to ``moments``.

    Returns:
        The exit code.
    """
    before, left = _state(folder), temporary_files(folder)
    seen = 0
    if after is not None:
        last = before
        while seen < after:
            if running.wait(_LOOK_SECONDS) is not None:
                return running.wait(0)
            now = _state(folder)
            seen += sum((now - last).values()) + sum((last - now).values())
            last = now
    if running.wait(delay) is not None:
        return running.wait(0)
    stage = _stage(running, folder, before, left)
    taken = time.monotonic() - running.started
    code = running.kill()
    if code == -9:
        step = newest_step(folder)
        moments.append({"second": round(taken, 2), "stage": stage, "step": step})
    return code


def _state(folder: Path) -> collections.Counter[tuple[str, int]]:
    """Returns the names and sizes of the files in a run's folder."""
    found: collections.Counter[tuple[str, int]] = collections.Counter()
    for path in entries(folder):
        if "compiled" in path.parts or path.suffix == ".log":
            continue
        try:
            found[path.as_posix(), path.stat().st_size] += 1
        except FileNotFoundError:
            continue  # Moved since it was listed.
    return found


def _count_changes(folder: Path) -> int:
    """Returns roughly how many times a run changes its folder."""
    return 2 * len(_state(folder))


def _stage(
    running: Running,
    folder: Path,
    before: collections.Counter[tuple[str, int]],
    left: list[str],
) -> str:
    """Returns the stage of a run: ``writing``, ``starting``, ``ending`` or ``running``.

    Args:
        running: the run.
        folder: its folder.
        before: state of the folder before the run, see `_state`.
        left: half-written files that were there before the run.
    """
    if set(temporary_files(folder)) - set(left):
        return "writing"
    if _state(folder) == before:
        return "starting"
    if last_line(running.printed()).startswith("written"):
        return "ending"
    return "running"
