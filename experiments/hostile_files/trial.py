"""Readers tried on damaged files: what they do, by format."""

import collections
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.hostile_files.worker import Job

ALLOWED = ("valid", "refused")
"""Outcomes that keep the contract: a value, or a documented error naming a file."""
BROKEN = ("undocumented", "unnamed", "crash", "hang", "memory", "escaped")
"""Outcomes that break it."""
_ROOT = Path(__file__).resolve().parents[2]
_LAST_LINES = 15
WORKER = (sys.executable, "-m", "experiments.hostile_files.worker")
"""Reads jobs, and writes what came of them; see that module."""


@dataclasses.dataclass
class Trial:
    """What came of the mutations of a format.

    Attributes:
        outcomes: how often each of `ALLOWED` and `BROKEN` was the end.
        problems: number of the first mutation of each problem, by outcome and error.
    """

    outcomes: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    problems: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)

    def add(self, number: int, outcome: str, error: str = "") -> None:
        """Counts a mutation."""
        self.outcomes[outcome] += 1
        if outcome in BROKEN:
            self.problems.setdefault((outcome, error), number)


def try_formats(
    names: Sequence[str],
    mutations: int,
    seed: int = 0,
    start: int = 0,
    command: Sequence[str] = WORKER,
) -> dict[str, Trial]:
    """Tries the readers of formats, in a process that is replaced when it crashes.

    Args:
        names: names of `experiments.hostile_files.formats.FORMATS`.
        mutations: mutations of each format.
        seed: random seed of the mutations.
        start: number of the first; one that failed is repeated by its number alone.
        command: command of a worker.

    Returns:
        What came of it, by format.

    Raises:
        RuntimeError: a worker that ended before its first mutation.
    """
    from tqdm import tqdm

    trials = {name: Trial() for name in names}
    jobs = [Job(name, start, start + mutations, seed) for name in names]
    total = mutations * len(names)
    with tqdm(total=total, unit="file", disable=None) as bar:
        while jobs:
            jobs = _work(command, jobs, trials, bar)
    return trials


def _work(
    command: Sequence[str], jobs: Sequence[Job], trials: Mapping[str, Trial], bar: Any
) -> list[Job]:
    """Runs one worker until it ends; returns the jobs that are left."""
    with tempfile.TemporaryFile("w+") as errors:
        worker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=_ROOT,
        )
        assert worker.stdin is not None and worker.stdout is not None
        with worker, worker.stdin as jobs_of_it:
            jobs_of_it.writelines(f"{json.dumps(vars(job))}\n" for job in jobs)
            jobs_of_it.close()
            left, begun = list(jobs), None
            for line in worker.stdout:
                record = json.loads(line)
                begun = record.pop("begun", None)
                if begun is not None:
                    bar.set_postfix_str(left[0].format)
                    continue
                trials[left[0].format].add(**record)
                bar.update()
                left = _after(left, record["number"])
        if not left:
            return []
        errors.seek(0)
        tail = [x.rstrip() for x in errors.readlines()[-_LAST_LINES * 4 :]]
    if begun is None:
        raise RuntimeError("\n".join(["a worker ended:", *tail[-_LAST_LINES:]]))
    outcome = "hang" if any(x.startswith("Timeout") for x in tail) else "crash"
    where = [x.strip() for x in tail if "meta_opt" in x and "File" in x]
    what = f"exit code {worker.returncode}, {where[0] if where else tail[-1:]}"
    trials[left[0].format].add(begun, outcome, what)
    bar.update()
    return _after(left, begun)


def _after(jobs: Sequence[Job], number: int) -> list[Job]:
    """Returns the jobs that are left when a mutation of the first one has ended."""
    rest = dataclasses.replace(jobs[0], start=number + 1)
    return [*([rest] if rest.start < rest.stop else []), *jobs[1:]]


def report(trials: Mapping[str, Trial]) -> str:
    """A table of outcomes, and a line for each problem with how to repeat it."""
    columns = (*ALLOWED, *BROKEN)
    lines = [f"{'format':20}" + "".join(f"{name:>13}" for name in columns)]
    for name, trial in trials.items():
        counts = "".join(f"{trial.outcomes[c]:13,}" for c in columns)
        lines.append(f"{name:20}{counts}")
    for name, trial in trials.items():
        lines += [
            f"{name}, mutation {number}: {outcome}: {error}"
            for (outcome, error), number in trial.problems.items()
        ]
    return "\n".join(lines)
