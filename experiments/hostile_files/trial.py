"""Runs file readers on damaged files and counts the outcomes by format."""

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
"""Outcomes that keep the contract: a value, or a documented error that names a file."""
BROKEN = ("undocumented", "unnamed", "crash", "hang", "memory", "escaped")
"""Outcomes that break the contract."""
_ROOT = Path(__file__).resolve().parents[2]
_LAST_LINES = 15
WORKER = (sys.executable, "-m", "experiments.hostile_files.worker")
"""Command of a worker, which reads jobs and writes their outcomes; see that module."""


@dataclasses.dataclass
class Trial:
    """Outcomes of the mutations of one format.

    Attributes:
        outcomes: number of mutations with each outcome in `ALLOWED` and `BROKEN`.
        problems: index of the first mutation with each problem, by outcome and error.
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
    """Runs readers on mutations, in a worker process that is replaced if it crashes.

    Args:
        names: keys of `experiments.hostile_files.formats.FORMATS`.
        mutations: number of mutations of each format.
        seed: random seed of the mutations.
        start: index of the first mutation; a failed one is repeated by its index.
        command: command of a worker.

    Returns:
        The outcomes by format.

    Raises:
        RuntimeError: a worker ended before its first mutation.
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
        with worker, worker.stdin as queue:
            queue.writelines(f"{json.dumps(vars(job))}\n" for job in jobs)
            queue.close()
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
    """Returns the jobs that remain after mutation ``number`` of the first job."""
    current = dataclasses.replace(jobs[0], start=number + 1)
    return [*([current] if current.start < current.stop else []), *jobs[1:]]


def report(trials: Mapping[str, Trial]) -> str:
    """Returns a table of outcomes, and the mutation index of each problem."""
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
