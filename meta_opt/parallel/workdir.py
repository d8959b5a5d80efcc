"""Locks that allow one run at a time in a directory, or several that share it."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from meta_opt.parallel.processes import any_process
from meta_opt.text_files import parse_json

_log = logging.getLogger(__name__)

LOCK = ".lock"
"""Lock file in a run's directory."""

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

_held: dict[Path, int] = {}
"""Directories that this process has locked, with the locking thread."""


class WorkdirInUseError(ValueError):
    """Another run uses the directory; the message has its process and host."""


@contextlib.contextmanager
def hold_workdir(
    workdir: str | os.PathLike | None, shared: bool = False
) -> Iterator[None]:
    """Locks a run's directory for a ``with`` block; all processes must call this.

    Two runs in the same directory would overwrite each other's checkpoints and logs.
    The lock is one of the operating system and is released when the process ends, even
    if it is killed. It is reentrant within a thread. In multi-process runs process 0
    holds it.

    Args:
        workdir: directory, created if needed; None locks nothing.
        shared: whether other runs with ``shared`` may use it at the same time.

    Raises:
        WorkdirInUseError: another process or thread has locked it.
        OSError: the directory cannot be written to.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with hold_workdir(folder), hold_workdir(folder):
        ...     os.listdir(folder)
        ['.lock']
    """
    if workdir is None:
        yield
        return
    place = Path(workdir).absolute()
    if _held.get(place) == threading.get_ident():
        yield
        return
    with contextlib.ExitStack() as stack:
        problem: Exception | None = None
        if place in _held:
            owner = "another thread of this process"
            problem = WorkdirInUseError(_in_use(place, owner))
        elif jax.process_index() == 0:
            try:
                stack.enter_context(lock_folder(place, shared))
            except (WorkdirInUseError, OSError) as error:
                problem = error
        if any_process(problem is not None):
            raise problem or WorkdirInUseError(
                f"process 0 cannot use {workdir}; it says why"
            )
        _held[place] = threading.get_ident()
        stack.callback(_held.pop, place)
        yield


@contextlib.contextmanager
def lock_folder(place: Path, shared: bool = False) -> Iterator[None]:
    """As `hold_workdir`, for a single process without JAX.

    Args:
        place: directory, created if needed.
        shared: whether other processes with ``shared`` may use it at the same time.

    Raises:
        WorkdirInUseError: another process has locked it.
        OSError: the directory cannot be written to.
    """
    place.mkdir(parents=True, exist_ok=True)
    with (place / LOCK).open("a+", encoding="utf-8") as file:
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise WorkdirInUseError(_in_use(place, _owner(file.read()))) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            _log.warning(
                "%s is on a file system without locks (%s): see to it that no other "
                "run uses it",
                *(place, error.strerror),
            )
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        if shared:
            owner["shared"] = True
        file.write(json.dumps(owner) + "\n")
        file.flush()
        # The file is kept, since a removed file could be locked by two processes.
        yield


def _owner(text: str) -> str:
    try:
        found = parse_json(text.encode())
        owner = f"process {found['pid']} on {found['host']} since {found['started']}"
        return f"{owner}, which shares it (--shared)" if found.get("shared") else owner
    except (ValueError, KeyError, TypeError):
        # The owner has not written its identity yet.
        return "another process"


def _in_use(place: Path, owner: str) -> str:
    return (
        f"{place} is in use by {owner}: wait until that run has ended, or use another "
        "--workdir"
    )
