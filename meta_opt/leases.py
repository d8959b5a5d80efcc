"""Leases on work items, for processes on many machines that share a folder.

A lease is a file that its owner touches periodically (Gray & Cheriton 1989). If it has
not been touched for some time, its owner is considered dead and another process may
take over the work. Ages are differences of the file system's timestamps, so that the
machines' clocks need not be synchronised; the file system's clock must be monotonic.
"""

import json
import logging
import os
import random
import socket
import threading
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)

EXPIRY_SECONDS = 60.0
"""Default age at which a lease expires."""
_BEATS = 6
"""Number of renewals of a lease within its expiry time."""
_POLLS = 10
"""Number of checks of others' leases within the expiry time."""
_SEPARATOR = "@"


class LeaseLostError(RuntimeError):
    """Another process has taken over the work: the result must not be written."""


class Lease:
    """The exclusive right to a work item, until it is released or lost.

    A thread renews it; leaving the ``with`` block releases it.

    Attributes:
        expiry_seconds: age at which others may take over the work.
    """

    def __init__(self, path: Path, expiry_seconds: float) -> None:
        self.expiry_seconds = expiry_seconds
        self._path = path
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Renews the lease, so that writing is safe until it expires.

        Raises:
            LeaseLostError: the lease had expired, since this process was suspended or
                its disk unreachable, and another process has taken over the work.
        """
        try:
            os.utime(self._path)
        except FileNotFoundError:
            name = self._path.name.partition(_SEPARATOR)[0]
            raise LeaseLostError(
                f"{name}: lease expired after {self.expiry_seconds:g} s without a "
                "heartbeat and another process took over; this result is discarded"
            ) from None

    def _renew(self) -> None:
        while not self._released.wait(self.expiry_seconds / _BEATS):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                return
            except OSError as error:  # The problem may be temporary.
                _log.warning("%s cannot be renewed: %s", self._path, error)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._released.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)


class Leases:
    """The leases of a folder that all processes share.

    Args:
        folder: shared folder, created if needed.
        expiry_seconds: age at which a lease expires, the same in all processes. It must
            exceed the longest time for which the shared folder is unreachable.

    Raises:
        ValueError: ``expiry_seconds`` is not positive.

    Example:
        >>> import tempfile
        >>> ours, theirs = (Leases(folder) for folder in [tempfile.mkdtemp()] * 2)
        >>> with ours.take("cell 1"):
        ...     theirs.take("cell 1") is None
        True
        >>> ours.held("cell 1")
        False
    """

    def __init__(
        self, folder: str | os.PathLike, expiry_seconds: float = EXPIRY_SECONDS
    ) -> None:
        if not expiry_seconds > 0:
            raise ValueError(f"expiry_seconds={expiry_seconds} must be above 0")
        self.expiry_seconds = expiry_seconds
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def take(self, name: str) -> Lease | None:
        """Takes a work item; returns None if another process or thread has it.

        A lease is a file with a unique name. Each process creates its file before it
        looks for others', so that of two concurrent processes at least one sees the
        other and backs off, perhaps both: try again.

        Args:
            name: name of the work item.

        Raises:
            ValueError: a name that is not valid for a file.
            OSError: the folder cannot be written to.
        """
        if not name or set(name) & {"/", "\0", _SEPARATOR} or name.startswith("."):
            raise ValueError(f"{name!r} is not a valid name of a lease file")
        begin = f"{name}{_SEPARATOR}"
        mine = self._folder / f"{begin}{uuid.uuid4().hex}"
        with mine.open("x", encoding="utf-8") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        try:
            now = _written(mine)
        except (
            FileNotFoundError
        ):  # This process was suspended for so long that its lease has expired.
            return None
        others = [
            self._folder / found
            for found in os.listdir(self._folder)
            if found.startswith(begin) and found != mine.name
        ]
        if all([self._removed_as_expired(path, now) for path in others]):
            return Lease(mine, self.expiry_seconds)
        mine.unlink(missing_ok=True)
        return None

    def held(self, name: str) -> bool:
        """Whether any process, including this one, has a work item."""
        lease = self.take(name)
        if lease is None:
            return True
        with lease:
            return False

    def _removed_as_expired(self, path: Path, now: float) -> bool:
        """Removes an expired lease, so that its owner can no longer renew it.

        The file is renamed before its age is checked again: if its owner has renewed it
        in between, it is restored.
        """
        moved = path.with_name(f".{path.name}")
        try:
            if now - _written(path) <= self.expiry_seconds:
                return False
            path.rename(moved)
            if now - _written(moved) <= self.expiry_seconds:
                moved.rename(path)
                return False
        except (
            FileNotFoundError
        ):  # The lease was released, or another process was faster.
            return True
        moved.unlink(missing_ok=True)
        return True


def _written(path: Path) -> float:
    """Modification time of a file in seconds of its file system's clock."""
    # NFS may answer `stat` from its cache; opening a file asks the server.
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def share(
    cells: Iterable[T],
    name: Callable[[T], str],
    work: Callable[[T, Lease | None], None],
    leases: Leases | None,
    stop: threading.Event | None = None,
) -> None:
    """Processes all work items that no other process does; returns when all are done.

    ``work`` is called for every item, also for those that another process has done.
    Items of dead processes are taken over when their leases expire.

    Args:
        cells: work items, in the order in which they are tried.
        name: function that returns the name of an item, see `Leases.take`.
        work: function that processes an item, or returns immediately if it is done. It
            calls `Lease.check` before it writes.
        leases: leases of the processes that share the work; None for a single process.
        stop: event that is set by another thread to begin no further items.

    Example:
        >>> share("ab", str, lambda cell, lease: print(cell), None)
        a
        b
    """
    waiting, stop = list(cells), stop or threading.Event()
    while waiting:
        held = []
        for cell in waiting:
            if stop.is_set():
                return
            if leases is None:
                work(cell, None)
                continue
            lease = leases.take(name(cell))
            if lease is None:
                held.append(cell)
                continue
            try:
                with lease:
                    work(cell, lease)
            except LeaseLostError as error:
                _log.warning("%s", error)
                held.append(cell)
        if leases is not None and len(held) == len(waiting):
            # Random delay, so that processes do not back off from each other forever.
            stop.wait(leases.expiry_seconds / _POLLS * random.uniform(0.5, 1.5))
        waiting = held
