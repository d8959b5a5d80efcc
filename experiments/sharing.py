"""Flags of commands whose work several processes may share."""

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from meta_opt.leases import EXPIRY_SECONDS, Leases
from meta_opt.parallel.workdir import lock_folder

# --help of a command lists these flags only if the command uses them.
flags.disclaim_key_flags()

_TRIES, _TRY_SECONDS = 5, 0.4
"""Number of attempts to take the lease of the report, and the largest random delay
between them in seconds, so that processes do not retry simultaneously."""

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
    """Defines ``--storage``, for commands that only run a search."""
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
    """Returns the arguments ``storage`` and ``expiry_seconds`` of `search`.

    Args:
        storage: value of ``--storage``.
        workdir: folder of the study's file if ``storage`` is "".
        name: name of the study.
    """
    from meta_opt.tuning.storage import study_file

    return {
        "storage": storage or study_file(workdir / name, SHARED.value),
        "expiry_seconds": LEASE_SECONDS.value,
    }


def leases_in(workdir: Path) -> Leases | None:
    """Returns the leases of shared work; None without ``--shared``."""
    if not SHARED.value:
        return None
    return Leases(workdir / "leases", LEASE_SECONDS.value)


@contextlib.contextmanager
def shared_work(workdir: Path) -> Iterator[Leases | None]:
    """Locks a folder during a ``with`` block, exclusively or with ``--shared``.

    Yields:
        `leases_in` the folder.

    Raises:
        ValueError: another process uses the folder, and one of the two does not share
            it.
    """
    leases = leases_in(workdir)
    with lock_folder(workdir, shared=leases is not None):
        yield leases


@contextlib.contextmanager
def reporting(leases: Leases | None) -> Iterator[bool]:
    """Yields whether this process writes the report at the end of shared work."""
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
