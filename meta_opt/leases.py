"""Leases on pieces of work, for processes on many machines that share a folder.

A lease is a file that its owner touches again and again (Gray & Cheriton 1989). One
that has not been touched for a while has lost its owner, and whoever comes next takes
the work. Ages are differences of times that the file system wrote, so that the clocks
of the machines need not agree; its own clock must run on.
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
"""Age at which a lease has lost its owner, unless another is given."""
_BEATS = 6
"""How often a lease is touched, in the time in which it would expire."""
_POLLS = 10
"""How often work that others hold is looked at in that time."""
_SEPARATOR = "@"


class LeaseLostError(RuntimeError):
    """Another process has taken the work: its result must not be written."""


class Lease:
    """The right to do a piece of work, until it is released or lost.

    A thread renews it. A ``with`` block releases it.

    Attributes:
        expiry_seconds: age at which others take the work.
    """

    def __init__(self, path: Path, expiry_seconds: float) -> None:
        self.expiry_seconds = expiry_seconds
        self._path = path
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Renews the lease. What is written within its expiry is written alone.

        Raises:
            LeaseLostError: the lease had expired, since this process was stopped or its
                disk out of reach, and another process has taken the work.
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
            except OSError as error:  # It may pass before the lease expires.
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
    """The leases of a folder that all processes see.

    Args:
        folder: created if needed.
        expiry_seconds: age at which a lease has lost its owner; the same in all
            processes. Longer than the shared folder is ever out of reach.

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
        """Takes a piece of work; None if another process, or thread, has it.

        A lease is a file of a name of its own. Each process creates its file before it
        looks for others', so that of two that come at once at least one sees the other
        and steps back, perhaps both: try again.

        Args:
            name: of the work.

        Raises:
            ValueError: a name that no file can have.
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
        except FileNotFoundError:  # Stopped for so long that it has expired.
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
        """Whether a process, this one too, has a piece of work."""
        lease = self.take(name)
        if lease is None:
            return True
        with lease:
            return False

    def _removed_as_expired(self, path: Path, now: float) -> bool:
        """Removes a lease that has expired; its owner cannot renew it any more.

        It is moved out of its owner's reach before it is looked at again: its owner may
        have renewed it in between, and then it is given back.
        """
        moved = path.with_name(f".{path.name}")
        try:
            if now - _written(path) <= self.expiry_seconds:
                return False
            path.rename(moved)
            if now - _written(moved) <= self.expiry_seconds:
                moved.rename(path)
                return False
        except FileNotFoundError:  # Released, or another process was first.
            return True
        moved.unlink(missing_ok=True)
        return True


def _written(path: Path) -> float:
    """When a file was last touched, seconds by its file system's clock."""
    # NFS may answer `stat` from memory; opening a file asks the server.
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def share(
    cells: Iterable[T],
    name: Callable[[T], str],
    work: Callable[[T, Lease | None], None],
    leases: Leases | None,
    stop: threading.Event | None = None,
) -> None:
    """Does every piece of work that no other process does; returns when all are done.

    At the end this process has had each piece in its hands, most of them when another
    had done it. A piece whose process died is taken when its lease has expired.

    Args:
        cells: pieces of work, in the order in which they are tried.
        name: of a piece, see `Leases.take`.
        work: does a piece, or returns at once if it finds it done. It calls
            `Lease.check` before it writes.
        leases: of all that share the work; None if this process is alone.
        stop: set by another thread if this one is to begin no more.

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
            # At random, so that processes do not step back from each other for ever.
            stop.wait(leases.expiry_seconds / _POLLS * random.uniform(0.5, 1.5))
        waiting = held
