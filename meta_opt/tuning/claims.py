"""Claims of processes on the trials of a study.

A claim ends with its process, however that ends. Processes of one machine use locks of
the operating system, processes that share a folder use leases, and a database server
has locks of its own.
"""

import contextlib
import fcntl
import logging
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from meta_opt.leases import EXPIRY_SECONDS, Leases

if TYPE_CHECKING:
    import sqlalchemy

_log = logging.getLogger(__name__)

_BEATS = 6
"""How often a server hears of a process, in the time until it lets go of its locks."""
_POLLS = 30
"""How often trials of others are looked at in that time."""
_STUDY = -1
"""In place of a trial's number: the study."""


class Claims(Protocol):
    """The claims of a study.

    Attributes:
        poll_seconds: interval of polling the trials of other processes, when no trial
            is left to begin.
    """

    poll_seconds: float

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Mutual exclusion: waits until no other process is in this context."""

    def hold(self, number: int) -> contextlib.AbstractContextManager[None]:
        """Claims a trial for the duration of the context.

        Raises:
            BlockingIOError: a process already holds the trial.
        """

    def held(self, number: int) -> bool:
        """Whether a live process, including this one, holds a trial."""

    def close(self) -> None:
        """Releases all resources."""


class FileLocks:
    """Locks for the processes of one machine.

    A killed process releases its trial immediately, without a timeout.

    Args:
        storage: file of the study; the locks are in a folder next to it.
    """

    poll_seconds = 0.2

    def __init__(self, storage: str | Path) -> None:
        self._folder = Path(f"{storage}.locks")
        self._folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """See `Claims`."""
        with open(self._folder / "study", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """See `Claims`."""
        path = self._path(number)
        with open(path, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
            path.unlink(missing_ok=True)

    def held(self, number: int) -> bool:
        """See `Claims`."""
        try:
            with open(self._path(number)) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        """See `Claims`."""

    def _path(self, number: int) -> Path:
        return self._folder / f"trial-{number}"


class FolderLeases:
    """Leases for processes on many machines that share the study's folder.

    Args:
        storage: file of the study; the leases are in a folder next to it.
        expiry_seconds: after which a trial is taken from a process that is not heard
            of.
    """

    def __init__(
        self, storage: str | Path, expiry_seconds: float = EXPIRY_SECONDS
    ) -> None:
        from optuna.storages.journal import JournalFileOpenLock

        self.poll_seconds = expiry_seconds / _POLLS
        self._leases = Leases(f"{storage}.leases", expiry_seconds)
        self._lock = JournalFileOpenLock(f"{storage}.leases/study")

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """See `Claims`."""
        self._lock.acquire()
        try:
            yield
        finally:
            # Another process may have broken the lock while this one was suspended.
            with contextlib.suppress(RuntimeError):
                self._lock.release()

    @contextlib.contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """See `Claims`."""
        lease = self._leases.take(f"trial-{number}")
        if lease is None:
            raise BlockingIOError(f"trial {number} is held already")
        with lease:
            yield

    def held(self, number: int) -> bool:
        """See `Claims`."""
        return self._leases.held(f"trial-{number}")

    def close(self) -> None:
        """See `Claims`."""


class ServerLocks:
    """Advisory locks of a PostgreSQL server (14 or later), held by a connection.

    The server releases them when the connection breaks, for example because the process
    was killed, and when it has received nothing for a while by its own clock.

    Args:
        url: URL of the database.
        study: name of the study.
        expiry_seconds: after which a trial is taken from a process that is not heard
            of.
    """

    def __init__(
        self,
        url: "sqlalchemy.URL",
        study: str,
        expiry_seconds: float = EXPIRY_SECONDS,
    ) -> None:
        import sqlalchemy

        self._engine = sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT"
        )
        self.poll_seconds = expiry_seconds / _POLLS
        # A lock is a pair of signed 32-bit numbers.
        self._study = zlib.crc32(study.encode()) - 2**31
        self._expiry_seconds = expiry_seconds
        self._connection: sqlalchemy.Connection | None = None
        self._connection_lock = threading.Lock()
        self._holding: set[int] = set()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """See `Claims`."""
        self._call("pg_advisory_lock", _STUDY)
        try:
            yield
        finally:
            self._call("pg_advisory_unlock", _STUDY)

    @contextlib.contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """See `Claims`."""
        if number in self._holding or not self._call("pg_try_advisory_lock", number):
            raise BlockingIOError(f"trial {number} is held already")
        self._holding.add(number)
        released = threading.Event()
        thread = threading.Thread(target=self._renew, args=(released,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            released.set()
            thread.join()
            self._holding.remove(number)
            self._call("pg_advisory_unlock", number)

    def held(self, number: int) -> bool:
        """See `Claims`."""
        # Advisory locks are reentrant: a connection can lock again what it holds.
        if number in self._holding:
            return True
        if not self._call("pg_try_advisory_lock", number):
            return True
        self._call("pg_advisory_unlock", number)
        return False

    def close(self) -> None:
        """See `Claims`."""
        with self._connection_lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _renew(self, released: threading.Event) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        while not released.wait(self._expiry_seconds / _BEATS):
            try:
                # Any statement tells the server that this process is alive.
                self._call("pg_try_advisory_xact_lock_shared", _STUDY)
            except SQLAlchemyError as error:
                _log.warning("the database is out of reach: %s", error)

    def _call(self, function: str, number: int) -> Any:
        import sqlalchemy

        statement = sqlalchemy.text(f"SELECT {function}(:study, :number)")
        values = {"study": self._study, "number": number}
        with self._connection_lock:
            if self._connection is not None:
                try:
                    return self._connection.execute(statement, values).scalar()
                except sqlalchemy.exc.DBAPIError as error:
                    if not error.connection_invalidated:
                        raise
                    # The server closed the connection and released its locks. Claims
                    # are lost, and the storage accepts no result of their trials.
                    self._connection.close()
                    self._connection = None
            self._connection = self._engine.connect()
            patience = round(1000 * self._expiry_seconds)
            self._connection.execute(
                sqlalchemy.text(f"SET idle_session_timeout = {patience}")
            )
            return self._connection.execute(statement, values).scalar()
