"""Damages files and reads them, in a process that may crash.

    python -m experiments.hostile_files.worker '{"format": "png", "start": 0, ...}'

Prints a JSON line before each mutation and one after it. The limit is on CPU time, so
that a slow read on a busy machine does not count as a hang.
"""

import contextlib
import dataclasses
import faulthandler
import fnmatch
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from experiments.hostile_files.format import Format
from experiments.hostile_files.formats import FORMATS
from experiments.hostile_files.mutations import mutate

_BACKSTOP = 6
"""Wall-clock limit as a multiple of the CPU time limit, for hangs outside of Python."""


class _Hang(BaseException):
    """Raised if a mutation takes too long; `except Exception` does not catch it."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A range of mutations of one format.

    Attributes:
        format: one of `FORMATS`.
        start: index of the first mutation.
        stop: index after the last mutation.
        seed: random seed of all mutations.
        seconds: CPU time that a reader may take.
        megabytes: memory that a reader may allocate, on top of the process's own.
    """

    format: str
    start: int
    stop: int
    seed: int = 0
    seconds: float = 10.0
    megabytes: int = 2048


def mutated(found: Format, files: Mapping[str, bytes], job: Job, number: int) -> Any:
    """Returns the files of a mutation, determined by seed, format and number."""
    rng = np.random.default_rng([job.seed, zlib.crc32(job.format.encode()), number])
    names = [
        (name, kind)
        for pattern, kind in found.damage.items()
        for name in sorted(files)
        if fnmatch.fnmatch(name, pattern)
    ]
    name, kind = names[int(rng.integers(len(names)))]
    return found.seal({**files, name: mutate(files[name], kind, rng)})


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _outcome(found: Format, folder: Path, job: Job) -> dict[str, str]:
    """Runs the reader; returns ``valid``, ``refused`` or a breach of the contract."""
    try:
        with _limits(job):
            found.read(folder)
    except _Hang:
        return {"outcome": "hang", "error": _where(sys.exc_info()[1])}
    except MemoryError as error:
        return {"outcome": "memory", "error": _where(error)}
    except found.errors as error:
        text = str(error)
        # The message may also name a file that the damaged one refers to.
        names = [folder.name, "outside", *(Path(name).name for name in found.damage)]
        if found.is_named and not any(name in text for name in names):
            return {"outcome": "unnamed", "error": _where(error)}
        return {"outcome": "refused"}
    except Exception as error:
        return {"outcome": "undocumented", "error": _where(error)}
    return {"outcome": "valid"}


@contextlib.contextmanager
def _limits(job: Job) -> Iterator[None]:
    """Limits memory and time of a ``with`` block."""

    def stop(number: int, frame: Any) -> None:
        raise _Hang

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (job.megabytes << 20)
    unlimited = resource.RLIM_INFINITY
    before = signal.signal(signal.SIGPROF, stop)
    faulthandler.dump_traceback_later(_BACKSTOP * job.seconds, exit=True)
    resource.setrlimit(resource.RLIMIT_AS, (limit, unlimited))
    signal.setitimer(signal.ITIMER_PROF, job.seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (unlimited, unlimited))
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def _where(error: BaseException | None) -> str:
    """Returns an error's type, message, and innermost lines in this project."""
    assert error is not None
    frames = [
        f"{Path(f.filename).name}:{f.lineno}"
        for f in traceback.extract_tb(error.__traceback__)
        if "meta_opt" in f.filename and ".venv" not in f.filename
    ]
    message = f"{type(error).__name__}: {error}"[:160]
    return f"{message} ({' < '.join(frames[-3:][::-1])})"


def _tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def work(job: Job, out: TextIO) -> None:
    """Reads every mutation of a job.

    Args:
        job: the job.
        out: receives two lines for each mutation.
    """
    found = FORMATS[job.format]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "a" / "b"
        folder, place = root / "input", root / "elsewhere"
        place.mkdir(parents=True)
        os.chdir(place)
        files = found.files()
        _write(folder, files)
        found.read(
            folder
        )  # Read the valid sample first: imports must not count towards the limits.
        shutil.rmtree(folder)
        around = _tree(Path(name))
        for number in range(job.start, job.stop):
            _write(folder, mutated(found, files, job, number))
            print(json.dumps({"begun": number}), file=out, flush=True)
            outcome = _outcome(found, folder, job)
            shutil.rmtree(folder, ignore_errors=True)
            if _tree(Path(name)) != around:
                outcome = {"outcome": "escaped", "error": str(_tree(Path(name)))}
                _clear(Path(name), around)
            print(json.dumps({"number": number, **outcome}), file=out, flush=True)
        os.chdir("/")


def _clear(folder: Path, kept: list[str]) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.relative_to(folder).as_posix() not in kept:
            path.rmdir() if path.is_dir() else path.unlink()


def main(seconds: float | None = None) -> None:
    """Works on the jobs that standard input lists, one per line.

    Args:
        seconds: CPU time limit per mutation, in place of the jobs' own.
    """
    faulthandler.enable()
    # Libraries may print to stdout, which the parent would read as outcomes.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        job = Job(**json.loads(line))
        work(job if seconds is None else dataclasses.replace(job, seconds=seconds), out)


if __name__ == "__main__":
    main()
