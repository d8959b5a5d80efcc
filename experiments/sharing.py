"""Flags of commands whose work several processes may share, and who reports."""

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from meta_opt.leases import EXPIRY_SECONDS, Leases
from meta_opt.parallel.workdir import lock_folder

# They are in the --help of the commands that take them.
flags.disclaim_key_flags()

_TRIES, _TRY_SECONDS = 5, 0.4
"""Processes that want to report at the same time step back from each other."""

SHARED = flags.DEFINE_bool(
    "shared",
    False,
    "Share the work with all processes that run the same command, on this machine or "
    "on others that see the same folders.",
)
LEASE_SECONDS = flags.DEFINE_float(
    "lease_seconds",
    EXPIRY_SECONDS,
    "Seconds without a heartbeat after which another process takes over the work.",
    lower_bound=1.0,
)


def define_storage() -> Any:
    """Defines ``--storage``, of commands that search alone."""
    if "storage" in flags.FLAGS:
        return flags.FLAGS["storage"]
    return flags.DEFINE_string(
        "storage",
        "",
        "Where the study is kept: postgresql://USER@HOST/DATABASE, or a file that ends "
        "in .sqlite3 (one machine) or .journal (a folder that several machines share). "
        "Default: such a file in --workdir.",
    )


def study_place(storage: str, workdir: Path, name: str) -> dict[str, Any]:
    """Where a study is kept, and when it is taken for abandoned: of `search`.

    Args:
        storage: ``--storage``.
        workdir: for its file, if ``storage`` is "".
        name: name of the study.
    """
    from meta_opt.tuning.storage import study_file

    return {
        "storage": storage or study_file(workdir / name, SHARED.value),
        "expiry_seconds": LEASE_SECONDS.value,
    }


def leases_in(workdir: Path) -> Leases | None:
    """Returns the leases of all that share the work; None if this process is alone."""
    if not SHARED.value:
        return None
    return Leases(workdir / "leases", LEASE_SECONDS.value)


@contextlib.contextmanager
def shared_work(workdir: Path) -> Iterator[Leases | None]:
    """Holds a folder, alone or with all that share it, for a ``with`` block.

    Yields:
        `leases_in` it.

    Raises:
        ValueError: another process has the folder and does not share it, or shares it
            while this one does not.
    """
    leases = leases_in(workdir)
    with lock_folder(workdir, shared=leases is not None):
        yield leases


@contextlib.contextmanager
def reporting(leases: Leases | None) -> Iterator[bool]:
    """Whether this process writes the report, at the end of work that is shared."""
    if leases is None:
        yield True
        return
    for _ in range(_TRIES):
        lease = leases.take("report")
        if lease is not None:
            with lease:
                yield True
            return
        time.sleep(random.uniform(0.0, _TRY_SECONDS))
    print("another process that shares the work writes the report")
    yield False
